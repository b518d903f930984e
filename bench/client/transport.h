// One connection's protocol: frames requests, and finds the replies in the bytes that arrive. Does no I/O itself.
#pragma once

#include <memory>
#include <string>
#include <string_view>

// Whom a transport tells what it found.
class Receiver {
 public:
  virtual ~Receiver() = default;
  // Requests may be sent from now on.
  virtual void on_open() = 0;
  // One reply message.
  virtual void on_reply(std::string_view message) = 0;
  // The request is over: after its only reply, or after the last of several.
  virtual void on_end() = 0;
  // The request was refused; the connection can be used further unless `is_fatal`.
  virtual void on_error(std::string_view text, bool is_fatal) = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  // Appends what is said first; returns whether requests may follow at once, else `on_open` tells.
  virtual bool greet(std::string& out) = 0;
  // Appends one framed request.
  virtual void request(std::string_view payload, std::string& out) = 0;
  // Takes what arrived, appends what the protocol itself must answer, and tells the receiver.
  virtual void receive(std::string_view bytes, std::string& out, Receiver& receiver) = 0;
};

struct Endpoint {
  std::string authority;  // HOST:PORT
  std::string path;
  std::string metadata;  // "name=value", or empty
};

// POST on a connection that is kept.
std::unique_ptr<Transport> make_http1(const Endpoint& endpoint);
std::unique_ptr<Transport> make_websocket(const Endpoint& endpoint);

// gRPC over HTTP/2 without TLS: a call a request, or all requests on one bidirectional call.
enum class Call { per_request, one_for_all };
std::unique_ptr<Transport> make_grpc(const Endpoint& endpoint, Call call);
