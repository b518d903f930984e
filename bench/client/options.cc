#include "options.h"

#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <sstream>

namespace {

const std::map<std::string, Mode> kModes = {
    {"http", Mode::http},         {"websocket", Mode::websocket}, {"unary", Mode::unary},       {"stream", Mode::stream},
    {"columnar", Mode::columnar}, {"post", Mode::post},           {"generate", Mode::generate}, {"json", Mode::json},
    {"inference", Mode::inference}, {"infer", Mode::infer},       {"infer-stream", Mode::infer_stream},
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UsageError("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> read_lines(const std::string& path) {
  std::istringstream text(read_file(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) {
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

using Setter = std::function<void(Options&, const std::string&)>;

template <typename Number>
Setter number(Number Options::*field) {
  return [field](Options& options, const std::string& text) {
    size_t used = 0;
    options.*field = static_cast<Number>(std::stod(text, &used));
    if (used != text.size()) throw UsageError(text + " is not a number");
  };
}

Setter text(std::string Options::*field) {
  return [field](Options& options, const std::string& value) { options.*field = value; };
}

Setter flag(bool Options::*field) {
  return [field](Options& options, const std::string& value) { options.*field = value == "yes"; };
}

void set_mode(Options& options, const std::string& name) {
  if (!kModes.count(name)) throw UsageError("unknown mode " + name);
  options.mode = kModes.at(name);
  options.mode_name = name;
}

const std::map<std::string, Setter> kSetters = {
    {"--mode", set_mode},
    {"--host", text(&Options::host)},
    {"--port", number(&Options::port)},
    {"--connections", number(&Options::connections)},
    {"--lanes", number(&Options::lanes)},
    {"--in-flight", number(&Options::in_flight)},
    {"--chunk", number(&Options::chunk)},
    {"--warmup", number(&Options::warmup)},
    {"--seconds", number(&Options::seconds)},
    {"--rate", number(&Options::rate)},
    {"--vocabulary", number(&Options::vocabulary)},
    {"--sessions", [](Options& options, const std::string& path) { options.sessions = read_lines(path); }},
    {"--echo", flag(&Options::is_echo)},
    {"--with-position", flag(&Options::with_position)},
    {"--metadata", text(&Options::metadata)},
    {"--path", text(&Options::path)},
    {"--body", [](Options& options, const std::string& path) { options.bodies.push_back(read_file(path)); }},
    {"--steps", [](Options& options, const std::string& text) { options.steps.push_back(std::stol(text)); }},
    {"--json", text(&Options::json)},
    {"--model", text(&Options::model)},
    {"--prompt", text(&Options::prompt)},
    {"--max-tokens", number(&Options::max_tokens)},
    {"--dump", text(&Options::dump)},
    {"--watch", [](Options& options, const std::string& id) { options.watched.push_back(std::stoi(id)); }},
};

void check(const Options& options) {
  const bool is_of_sessions = options.mode != Mode::post && options.mode != Mode::generate;
  const size_t wanted = is_of_sessions ? static_cast<size_t>(options.connections) * options.lanes : 0;
  if (options.connections < 1 || options.lanes < 1 || options.chunk < 1 || options.in_flight < 1) {
    throw UsageError("connections, lanes, chunk and in-flight are at least 1");
  }
  if (options.sessions.size() < wanted) {
    throw UsageError("--sessions must name " + std::to_string(wanted) + " sessions, one a line");
  }
  if (options.mode == Mode::post && (options.bodies.empty() || options.bodies.size() != options.steps.size())) {
    throw UsageError("--mode post needs --body and, for each, --steps");
  }
  if (options.chunk > 1 && (options.mode == Mode::json || options.mode == Mode::inference)) {
    throw UsageError("peers are sent one step a message: --chunk must be 1");
  }
  if (options.lanes > 1 && options.mode != Mode::columnar) throw UsageError("--lanes are for --mode columnar");
  if (options.in_flight > 1 && options.mode != Mode::columnar && options.mode != Mode::stream &&
      options.mode != Mode::websocket && options.mode != Mode::infer_stream) {
    throw UsageError("--in-flight is for streams");
  }
}

}  // namespace

Options parse_options(int count, char** arguments) {
  Options options;
  for (int at = 1; at < count; at += 2) {
    const auto setter = kSetters.find(arguments[at]);
    if (setter == kSetters.end()) throw UsageError(std::string("unknown option ") + arguments[at]);
    if (at + 1 == count) throw UsageError(std::string(arguments[at]) + " needs a value");
    setter->second(options, arguments[at + 1]);
  }
  check(options);
  return options;
}
