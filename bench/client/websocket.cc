// WebSocket (RFC 6455), client side: text frames, masked with zero, which leaves the payload as it is.
#include <cstdint>

#include "transport.h"

namespace {

constexpr uint8_t kFin = 0x80, kMasked = 0x80;
constexpr uint8_t kText = 1, kBinary = 2, kClose = 8, kPing = 9, kPong = 10;

uint64_t big_endian(std::string_view bytes) {
  uint64_t value = 0;
  for (unsigned char byte : bytes) value = value << 8 | byte;
  return value;
}

void put_frame(std::string& out, uint8_t opcode, std::string_view payload) {
  out += static_cast<char>(kFin | opcode);
  if (payload.size() < 126) {
    out += static_cast<char>(kMasked | payload.size());
  } else if (payload.size() < 65536) {
    out += static_cast<char>(kMasked | 126);
    out += static_cast<char>(payload.size() >> 8);
    out += static_cast<char>(payload.size());
  } else {
    out += static_cast<char>(kMasked | 127);
    for (int shift = 56; shift >= 0; shift -= 8) out += static_cast<char>(payload.size() >> shift);
  }
  out.append(4, '\0');
  out += payload;
}

class WebSocket : public Transport {
 public:
  explicit WebSocket(const Endpoint& endpoint) : endpoint_(endpoint) {}

  bool greet(std::string& out) override {
    out += "GET " + endpoint_.path + " HTTP/1.1\r\nHost: " + endpoint_.authority +
           "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    return false;
  }

  void request(std::string_view payload, std::string& out) override { put_frame(out, kText, payload); }

  void receive(std::string_view bytes, std::string& out, Receiver& receiver) override {
    in_ += bytes;
    if (!is_open_ && !take_handshake(receiver)) return;
    while (take_frame(out, receiver)) {
    }
  }

 private:
  bool take_handshake(Receiver& receiver) {
    const size_t blank = in_.find("\r\n\r\n");
    if (blank == std::string::npos) return false;
    is_open_ = !in_.compare(9, 3, "101");
    if (!is_open_) {
      receiver.on_error(in_, true);
      return false;
    }
    in_.erase(0, blank + 4);
    receiver.on_open();
    return true;
  }

  bool take_frame(std::string& out, Receiver& receiver) {
    if (in_.size() < 2) return false;
    const uint8_t opcode = in_[0] & 15, code = in_[1] & 127;
    const size_t extra = code == 126 ? 2 : code == 127 ? 8 : 0, start = 2 + extra;
    if (in_.size() < start) return false;
    const size_t size = extra ? big_endian(std::string_view(in_).substr(2, extra)) : code;
    if (in_.size() < start + size) return false;
    const std::string payload = in_.substr(start, size);
    in_.erase(0, start + size);
    if (opcode == kPing) put_frame(out, kPong, payload);
    if (opcode == kClose) receiver.on_error("closed: " + payload.substr(payload.size() < 2 ? 0 : 2), true);
    if (opcode == kText || opcode == kBinary) {
      receiver.on_reply(payload);
      receiver.on_end();
    }
    return opcode != kClose;
  }

  Endpoint endpoint_;
  std::string in_;
  bool is_open_ = false;
};

}  // namespace

std::unique_ptr<Transport> make_websocket(const Endpoint& endpoint) { return std::make_unique<WebSocket>(endpoint); }
