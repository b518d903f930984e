// HTTP/1.1 with keep-alive: one POST at a time; replies must tell their length.
#include <strings.h>

#include <cstdlib>

#include "transport.h"

namespace {

constexpr std::string_view kBlank = "\r\n\r\n";
constexpr std::string_view kLength = "content-length:";

// The declared length of the body, zero where none is told.
size_t body_size(std::string_view head) {
  for (size_t at = head.find("\r\n"); at != std::string_view::npos; at = head.find("\r\n", at + 2)) {
    const std::string_view line = head.substr(at + 2);
    if (line.size() > kLength.size() && !strncasecmp(line.data(), kLength.data(), kLength.size())) {
      return std::strtoull(line.data() + kLength.size(), nullptr, 10);
    }
  }
  return 0;
}

class Http1 : public Transport {
 public:
  explicit Http1(const Endpoint& endpoint) {
    head_ = "POST " + endpoint.path + " HTTP/1.1\r\nHost: " + endpoint.authority + "\r\n";
    if (const size_t at = endpoint.metadata.find('='); at != std::string::npos) {
      head_ += endpoint.metadata.substr(0, at) + ": " + endpoint.metadata.substr(at + 1) + "\r\n";
    }
    head_ += "Content-Type: application/json\r\nContent-Length: ";
  }

  bool greet(std::string&) override { return true; }

  void request(std::string_view payload, std::string& out) override {
    out += head_ + std::to_string(payload.size());
    out += kBlank;
    out += payload;
  }

  void receive(std::string_view bytes, std::string&, Receiver& receiver) override {
    in_ += bytes;
    while (take_reply(receiver)) {
    }
  }

 private:
  bool take_reply(Receiver& receiver) {
    const size_t blank = in_.find(kBlank);
    if (blank == std::string::npos) return false;
    const std::string_view head(in_.data(), blank + 2);
    const size_t start = blank + kBlank.size(), size = body_size(head);
    if (in_.size() < start + size) return false;
    const std::string reply = in_.substr(0, start + size);
    in_.erase(0, reply.size());
    const std::string_view body = std::string_view(reply).substr(start);
    if (reply.compare(9, 1, "2")) {
      receiver.on_error(body.empty() ? reply : body, false);
    } else {
      receiver.on_reply(body);
      receiver.on_end();
    }
    return true;
  }

  std::string head_;
  std::string in_;
};

}  // namespace

std::unique_ptr<Transport> make_http1(const Endpoint& endpoint) { return std::make_unique<Http1>(endpoint); }
