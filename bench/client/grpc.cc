// gRPC over HTTP/2 without TLS (RFC 9113, RFC 7541, grpc.io PROTOCOL-HTTP2), the client's half of it.
//
// One call is open at a time. Headers are sent as literals that both sides remember, later by their index. Header
// blocks of replies are not decoded: a call that ends without a message has failed, and its trailers' printable bytes
// are its error. Windows for what arrives are as large as the protocol allows; those of the server are respected.
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <vector>

#include "transport.h"

namespace {

enum Frame : uint8_t { kData, kHeaders, kPriority, kReset, kSettings, kPush, kPing, kGoAway, kWindowUpdate };
enum Flag : uint8_t { kNone = 0, kEndStream = 1, kAck = 1, kEndHeaders = 4, kPadded = 8 };

constexpr uint16_t kHeaderTableSize = 1, kEnablePush = 2, kInitialWindow = 4, kMaxFrame = 5;
constexpr size_t kFrameHead = 9, kMessageHead = 5;
constexpr int64_t kDefaultWindow = 65535, kLargestWindow = 0x7fffffff;
constexpr int64_t kRefreshAfter = 1 << 28;

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr char kMethodPost = '\x83', kSchemeHttp = '\x86';  // whole entries of HPACK's static table
constexpr char kPath = '\x44', kAuthority = '\x41', kContentType = '\x5f';  // literals under its names, to be remembered
constexpr char kNewName = '\x40';
constexpr int kFirstDynamic = 62;

uint32_t big_endian(std::string_view bytes) {
  uint32_t value = 0;
  for (unsigned char byte : bytes.substr(0, 4)) value = value << 8 | byte;
  return value;
}

void put_big_endian(std::string& out, uint32_t value, int bytes) {
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) out += static_cast<char>(value >> shift);
}

void put_frame(std::string& out, Frame type, uint8_t flags, uint32_t stream, std::string_view payload) {
  put_big_endian(out, payload.size(), 3);
  out += static_cast<char>(type);
  out += static_cast<char>(flags);
  put_big_endian(out, stream, 4);
  out += payload;
}

void put_window_update(std::string& out, uint32_t stream, uint32_t increment) {
  std::string payload;
  put_big_endian(payload, increment, 4);
  put_frame(out, kWindowUpdate, kNone, stream, payload);
}

void put_setting(std::string& out, uint16_t name, uint32_t value) {
  put_big_endian(out, name, 2);
  put_big_endian(out, value, 4);
}

// HPACK's length prefix of seven bits, without Huffman coding.
void put_literal(std::string& out, std::string_view text) {
  size_t rest = text.size();
  if (rest < 127) {
    out += static_cast<char>(rest);
  } else {
    out += '\x7f';
    for (rest -= 127; rest > 127; rest >>= 7) out += static_cast<char>(rest | 128);
    out += static_cast<char>(rest);
  }
  out += text;
}

// The request headers: spelled out once, then by index.
class Headers {
 public:
  explicit Headers(const Endpoint& endpoint) {
    spelled_ = {kMethodPost, kSchemeHttp};
    add(std::string(1, kPath), endpoint.path);
    add(std::string(1, kAuthority), endpoint.authority);
    add(std::string(1, kContentType), "application/grpc");
    add(new_name("te"), "trailers");
    if (const size_t at = endpoint.metadata.find('='); at != std::string::npos) {
      add(new_name(endpoint.metadata.substr(0, at)), endpoint.metadata.substr(at + 1));
    }
    indexed_ = {kMethodPost, kSchemeHttp};
    for (int entry = count_ - 1; entry >= 0; --entry) indexed_ += static_cast<char>(0x80 | (kFirstDynamic + entry));
  }

  const std::string& next() {
    const std::string& block = is_first_ ? spelled_ : indexed_;
    is_first_ = false;
    return block;
  }

 private:
  static std::string new_name(std::string_view name) {
    std::string out(1, kNewName);
    put_literal(out, name);
    return out;
  }

  void add(const std::string& name, std::string_view value) {
    spelled_ += name;
    put_literal(spelled_, value);
    ++count_;
  }

  std::string spelled_, indexed_;
  int count_ = 0;
  bool is_first_ = true;
};

std::string printable(std::string_view bytes) {
  std::string text;
  std::copy_if(bytes.begin(), bytes.end(), std::back_inserter(text), [](unsigned char c) { return std::isprint(c); });
  return text;
}

class Grpc : public Transport {
 public:
  Grpc(const Endpoint& endpoint, Call call) : headers_(endpoint), call_(call) {}

  bool greet(std::string& out) override {
    std::string settings;
    put_setting(settings, kHeaderTableSize, 0);
    put_setting(settings, kEnablePush, 0);
    put_setting(settings, kInitialWindow, kLargestWindow);
    out += kPreface;
    put_frame(out, kSettings, kNone, 0, settings);
    put_window_update(out, 0, kLargestWindow - kDefaultWindow);
    return true;
  }

  void request(std::string_view payload, std::string& out) override {
    if (call_ == Call::per_request || stream_ == 0) open_call(out);
    unsent_ += '\0';  // not compressed
    put_big_endian(unsent_, payload.size(), 4);
    unsent_ += payload;
    send_data(out);
  }

  void receive(std::string_view bytes, std::string& out, Receiver& receiver) override {
    in_ += bytes;
    size_t at = 0;
    while (in_.size() - at >= kFrameHead) {
      const size_t size = big_endian(std::string_view(in_).substr(at, 4)) >> 8;
      if (in_.size() - at < kFrameHead + size) break;
      // A receiver may send its next request at once; what is in `in_` stays where it is meanwhile.
      take_frame(std::string_view(in_).substr(at, kFrameHead + size), out, receiver);
      at += kFrameHead + size;
    }
    in_.erase(0, at);
  }

 private:
  void open_call(std::string& out) {
    stream_ = stream_ ? stream_ + 2 : 1;
    put_frame(out, kHeaders, kEndHeaders, stream_, headers_.next());
    stream_window_ = initial_window_;
    unsent_.clear();
    reply_.clear();
    num_replies_ = 0;
    is_sent_ = false;
    is_open_ = true;
  }

  // As much of what waits as the server's windows let through.
  void send_data(std::string& out) {
    size_t at = 0;
    while (at < unsent_.size()) {
      const int64_t room = std::min({window_, stream_window_, max_frame_});
      if (room <= 0) break;
      const size_t size = std::min<size_t>(room, unsent_.size() - at);
      const bool is_last = call_ == Call::per_request && at + size == unsent_.size();
      put_frame(out, kData, is_last ? kEndStream : kNone, stream_, std::string_view(unsent_).substr(at, size));
      is_sent_ = is_last;
      at += size;
      window_ -= size;
      stream_window_ -= size;
    }
    unsent_.erase(0, at);
  }

  void take_frame(std::string_view frame, std::string& out, Receiver& receiver) {
    const uint8_t type = frame[3], flags = frame[4];
    const uint32_t stream = big_endian(frame.substr(5, 4)) & 0x7fffffff;
    std::string_view payload = frame.substr(kFrameHead);
    switch (type) {
      case kSettings:
        if (!(flags & kAck)) apply_settings(payload, out);
        break;
      case kPing:
        if (!(flags & kAck)) put_frame(out, kPing, kAck, 0, payload);
        break;
      case kWindowUpdate:
        if (stream == 0) window_ += big_endian(payload);
        if (stream == stream_) stream_window_ += big_endian(payload);
        send_data(out);
        break;
      case kGoAway:
        receiver.on_error("GOAWAY: " + printable(payload.substr(8)), true);
        break;
      case kReset:
        if (stream == stream_ && is_open_) receiver.on_error("stream reset", call_ == Call::one_for_all);
        break;
      case kData:
        if (flags & kPadded) payload = payload.substr(1, payload.size() - 1 - static_cast<uint8_t>(payload[0]));
        count_received(frame.size() - kFrameHead, out);
        if (stream == stream_) take_data(payload, receiver);
        [[fallthrough]];
      case kHeaders:
        if (stream == stream_ && (flags & kEndStream)) end_call(printable(payload), receiver);
        break;
      default:
        break;
    }
  }

  void apply_settings(std::string_view payload, std::string& out) {
    for (; payload.size() >= 6; payload.remove_prefix(6)) {
      const uint16_t name = big_endian(payload.substr(0, 2));
      const uint32_t value = big_endian(payload.substr(2, 4));
      if (name == kMaxFrame) max_frame_ = value;
      if (name == kInitialWindow) {
        stream_window_ += static_cast<int64_t>(value) - initial_window_;
        initial_window_ = value;
      }
    }
    put_frame(out, kSettings, kAck, 0, "");
    send_data(out);
  }

  // Both windows started at the largest size; give back what was used before they run dry.
  void count_received(size_t size, std::string& out) {
    received_ += size;
    if (received_ < kRefreshAfter) return;
    put_window_update(out, 0, received_);
    if (call_ == Call::one_for_all) put_window_update(out, stream_, received_);
    received_ = 0;
  }

  void take_data(std::string_view bytes, Receiver& receiver) {
    reply_ += bytes;
    while (reply_.size() >= kMessageHead) {
      const size_t size = big_endian(std::string_view(reply_).substr(1, 4));
      if (reply_.size() < kMessageHead + size) return;
      const std::string message = reply_.substr(kMessageHead, size);
      reply_.erase(0, kMessageHead + size);
      ++num_replies_;
      receiver.on_reply(message);
      if (call_ == Call::one_for_all) receiver.on_end();
    }
  }

  void end_call(const std::string& trailers, Receiver& receiver) {
    is_open_ = false;
    if (call_ == Call::one_for_all) {
      receiver.on_error("the stream ended: " + trailers, true);
    } else if (num_replies_ == 0 || !is_sent_) {
      receiver.on_error("the call ended without a reply: " + trailers, false);
    } else {
      receiver.on_end();
    }
  }

  Headers headers_;
  Call call_;
  std::string in_, reply_, unsent_;
  uint32_t stream_ = 0;
  long num_replies_ = 0;
  bool is_open_ = false, is_sent_ = false;
  int64_t window_ = kDefaultWindow, stream_window_ = kDefaultWindow, initial_window_ = kDefaultWindow;
  int64_t max_frame_ = 16384, received_ = 0;
};

}  // namespace

std::unique_ptr<Transport> make_grpc(const Endpoint& endpoint, Call call) {
  return std::make_unique<Grpc>(endpoint, call);
}
