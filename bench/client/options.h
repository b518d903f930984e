// What the client is told on its command line. Knows names and defaults, not what they do.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

enum class Mode { http, websocket, unary, stream, columnar, post, generate, json, inference, infer, infer_stream };

struct Options {
  Mode mode = Mode::stream;
  std::string mode_name = "stream";
  std::string host = "127.0.0.1";
  int port = 8081;
  int connections = 1;
  int lanes = 1;     // sessions a connection; more than one in columnar mode only
  int in_flight = 1; // requests a connection may await; more than one on streams only
  int chunk = 1;     // steps a message
  double warmup = 0.5, seconds = 2;
  double rate = 0;             // messages a second over all connections; zero: as fast as replies come
  int vocabulary = 65;         // tokens are numbers below it
  std::vector<std::string> sessions;  // connections × lanes of them
  bool is_echo = false;        // the server does not keep sessions: positions are not checked
  bool with_position = false;  // requests name their position
  std::string metadata;        // "name=value", a header of every request
  std::string path;            // modes post and json: where to
  std::vector<std::string> bodies;  // mode post: what; connections take them in turn
  std::vector<long> steps;          // mode post: of each body, the steps that it stands for
  std::string json;  // mode json: the body, with SESSION and TOKEN where the step's are to stand
  std::string model, prompt = "\n";  // modes generate (both); inference, infer and infer-stream (model)
  int max_tokens = 100;
  std::string dump;            // file for the answers of the first and the last session
  std::vector<int> watched;    // processes whose CPU time is taken over the measurement
};

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Options parse_options(int count, char** arguments);
