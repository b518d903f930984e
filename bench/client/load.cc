#include "load.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <deque>
#include <stdexcept>

#include "transport.h"

namespace {

constexpr long kMostErrors = 1000;
constexpr size_t kExpectedReplies = 1 << 20;

std::runtime_error failure(const std::string& what) { return std::runtime_error(what + ": " + std::strerror(errno)); }

int connect_to(const Options& options) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(options.port));
  if (inet_pton(AF_INET, options.host.c_str(), &address.sin_addr) != 1) throw UsageError("--host must be an IPv4 address");
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  if (socket < 0) throw failure("socket");
  if (connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address)) throw failure("connect");
  const int yes = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  fcntl(socket, F_SETFL, O_NONBLOCK);
  return socket;
}

std::unique_ptr<Transport> make_transport(const Options& options, int connection) {
  Endpoint endpoint{options.host + ':' + std::to_string(options.port), options.path, options.metadata};
  const auto at = [&endpoint](std::string path) {
    endpoint.path = std::move(path);
    return endpoint;
  };
  switch (options.mode) {
    case Mode::http:
      return make_http1(at("/v1/sessions/" + options.sessions[connection] + ":step"));
    case Mode::websocket:
      return make_websocket(at("/v1/sessions/" + options.sessions[connection] + "/stream"));
    case Mode::post:
    case Mode::json:
      return make_http1(endpoint);
    case Mode::infer:
      return make_grpc(at("/inference.GRPCInferenceService/ModelInfer"), Call::per_request);
    case Mode::inference:
    case Mode::infer_stream:
      return make_grpc(at("/inference.GRPCInferenceService/ModelStreamInfer"), Call::one_for_all);
    case Mode::unary:
      return make_grpc(at("/tidegate.v1.Sessions/Step"), Call::per_request);
    case Mode::generate:
      return make_grpc(at("/tidegate.v1.Predictor/Generate"), Call::per_request);
    default:
      return make_grpc(at("/tidegate.v1.Predictor/Stream"), Call::one_for_all);
  }
}

}  // namespace

// A socket with its protocol and its work.
class Connection : private Receiver {
 public:
  Connection(Load& load, int number, Dump& dump)
      : load_(load), socket_(connect_to(load.options_)), transport_(make_transport(load.options_, number)),
        work_(make_work(load.options_, number, dump)) {
    epoll_event event = interest(EPOLLIN);
    if (epoll_ctl(load_.epoll_, EPOLL_CTL_ADD, socket_, &event)) throw failure("epoll_ctl");
  }
  ~Connection() override { lose(); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void start() {
    is_open_ = transport_->greet(out_);
    send_requests();
    flush();
  }

  // With a fixed rate: one more request is due.
  void owe(double due) {
    owed_.push_back(due);
    send_requests();
    flush();
  }

  const Pace& pace() const { return pace_; }

  void on_event(uint32_t events) {
    if (socket_ < 0) return;
    if (events & EPOLLOUT) flush();
    if (events & ~EPOLLOUT) receive();
  }

 private:
  epoll_event interest(uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.ptr = this;
    return event;
  }

  void receive() {
    static std::array<char, 1 << 16> buffer;
    const ssize_t size = recv(socket_, buffer.data(), buffer.size(), 0);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) return on_error("closed by the server", true);
    transport_->receive({buffer.data(), static_cast<size_t>(size)}, out_, *this);
    flush();
  }

  void on_open() override {
    is_open_ = true;
    send_requests();
  }

  void on_reply(std::string_view message) override {
    const Outcome outcome = work_->reply(message);
    if (!outcome.error.empty()) load_.count_error(outcome.error);
    steps_ += outcome.steps;
    load_.count_reply(outcome.steps, message.size());
  }

  void on_end() override {
    if (in_flight_.empty()) return on_error("a reply that nobody asked for", true);
    load_.count_end(in_flight_.front());
    in_flight_.pop_front();
    if (load_.is_measuring_) pace_.add(steps_, now());
    steps_ = 0;
    send_requests();
  }

  void on_error(std::string_view text, bool is_fatal) override {
    load_.count_error(text);
    if (is_fatal || in_flight_.empty()) return lose();
    in_flight_.pop_front();
    send_requests();
  }

  void send_requests() {
    const bool is_paced = load_.options_.rate > 0;
    while (can_send() && (!is_paced || !owed_.empty())) {
      in_flight_.push_back(is_paced ? owed_.front() : now());
      if (is_paced) owed_.pop_front();
      transport_->request(work_->request(), out_);
    }
  }

  bool can_send() const {
    const size_t most = load_.options_.in_flight;
    return is_open_ && socket_ >= 0 && in_flight_.size() < most && (in_flight_.empty() || !work_->is_exclusive());
  }

  void flush() {
    while (socket_ >= 0 && !out_.empty()) {
      const ssize_t size = send(socket_, out_.data(), out_.size(), MSG_NOSIGNAL);
      if (size < 0 && errno == EAGAIN) break;
      if (size <= 0) return on_error("cannot send", true);
      out_.erase(0, size);
    }
    watch_for_room(!out_.empty());
  }

  void watch_for_room(bool is_wanted) {
    if (socket_ < 0 || is_wanted == is_blocked_) return;
    is_blocked_ = is_wanted;
    epoll_event event = interest(is_wanted ? EPOLLIN | EPOLLOUT : EPOLLIN);
    epoll_ctl(load_.epoll_, EPOLL_CTL_MOD, socket_, &event);
  }

  void lose() {
    if (socket_ < 0) return;
    close(socket_);
    socket_ = -1;
    load_.lose_connection();
  }

  Load& load_;
  int socket_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Work> work_;
  std::string out_;
  std::deque<double> in_flight_, owed_;  // when each request was due
  Pace pace_;
  long steps_ = 0;  // of the request under way
  bool is_open_ = false, is_blocked_ = false;
};

Load::Load(const Options& options, Dump& dump) : options_(options), epoll_(epoll_create1(0)) {
  if (epoll_ < 0) throw failure("epoll_create1");
  measurement_.latencies.reserve(kExpectedReplies);
  for (int number = 0; number < options.connections; ++number) {
    connections_.push_back(std::make_unique<Connection>(*this, number, dump));
  }
}

Load::~Load() {
  connections_.clear();
  close(epoll_);
}

Measurement Load::run() {
  start_ = now();
  for (auto& connection : connections_) connection->start();
  run_until(start_ + options_.warmup);
  is_measuring_ = true;
  measurement_.begin = now();
  const double own = own_cpu(), watched = cpu_of(options_.watched);
  run_until(measurement_.begin + options_.seconds);
  is_measuring_ = false;
  measurement_.end = now();
  measurement_.client_cpu = own_cpu() - own;
  measurement_.watched_cpu = cpu_of(options_.watched) - watched;
  for (const auto& connection : connections_) {
    measurement_.steps_per_s_between += connection->pace().steps_per_s(measurement_.end - measurement_.begin);
  }
  return std::move(measurement_);
}

void Load::run_until(double end) {
  while (now() < end && !is_hopeless()) {
    give_turns();
    wait(options_.rate > 0 ? std::min(end, next_turn()) : end);
  }
}

void Load::wait(double until) {
  std::array<epoll_event, 256> events;
  const double rest = std::max(0.0, until - now());
  const timespec limit{static_cast<time_t>(rest), static_cast<long>(std::fmod(rest, 1) * 1e9)};
  const int count = epoll_pwait2(epoll_, events.data(), events.size(), &limit, nullptr);
  for (int at = 0; at < count; ++at) static_cast<Connection*>(events[at].data.ptr)->on_event(events[at].events);
}

void Load::give_turns() {
  if (options_.rate <= 0) return;
  for (const double time = now(); next_turn() <= time; ++num_turns_) {
    connections_[num_turns_ % connections_.size()]->owe(next_turn());
  }
}

double Load::next_turn() const { return start_ + static_cast<double>(num_turns_) / options_.rate; }

bool Load::is_hopeless() const {
  return num_lost_ == options_.connections || measurement_.errors > kMostErrors;
}

void Load::count_reply(long steps, size_t bytes) {
  if (!is_measuring_) return;
  measurement_.steps += steps;
  measurement_.reply_bytes += static_cast<long>(bytes);
}

void Load::count_end(double due) {
  if (!is_measuring_) return;
  ++measurement_.messages;
  measurement_.latencies.push_back(static_cast<float>(now() - due));
}

void Load::count_error(std::string_view text) {
  if (!measurement_.errors++) measurement_.first_error = text;
}
