#include "report.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>

namespace {

constexpr double kMicroseconds = 1e6;

double seconds(const timeval& time) { return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6; }

// Fields 14 and 15 of /proc/PID/stat; counting starts after the name, which may contain blanks.
double cpu_of(int process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 2));
  const std::vector<std::string> values{std::istream_iterator<std::string>(fields), {}};
  return (std::stod(values.at(11)) + std::stod(values.at(12))) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// Microseconds; `sorted` is seconds.
double quantile(const std::vector<float>& sorted, double fraction) {
  if (sorted.empty()) return 0;
  const auto at = static_cast<size_t>(fraction * static_cast<double>(sorted.size()));
  return sorted[std::min(at, sorted.size() - 1)] * kMicroseconds;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text.substr(0, 300)) {
    if (c == '"' || c == '\\') out += '\\';
    out += c < 32 || c > 126 ? '.' : static_cast<char>(c);
  }
  return out + '"';
}

class Object {
 public:
  void add(const char* name, double value) {
    char text[64];
    std::snprintf(text, sizeof text, "%.10g", value);
    add_raw(name, text);
  }
  void add_raw(const char* name, const std::string& value) {
    out_ += (out_.size() > 1 ? ", \"" : "\"") + std::string(name) + "\": " + value;
  }
  std::string str() const { return out_ + "}"; }

 private:
  std::string out_ = "{";
};

}  // namespace

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double own_cpu() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double cpu_of(const std::vector<int>& processes) {
  double sum = 0;
  for (int process : processes) sum += cpu_of(process);
  return sum;
}

void Pace::add(long new_steps, double time) {
  if (!messages++) first = time;
  last = time;
  steps += new_steps;
}

double Pace::steps_per_s(double elapsed) const {
  if (messages < 2) return static_cast<double>(steps) / elapsed;
  const double steps_per_message = static_cast<double>(steps) / static_cast<double>(messages);
  return steps_per_message * static_cast<double>(messages - 1) / (last - first);
}

std::string to_json(const Options& options, Measurement& measurement) {
  auto& latencies = measurement.latencies;
  std::sort(latencies.begin(), latencies.end());
  const double elapsed = measurement.end - measurement.begin;
  const auto messages = static_cast<double>(measurement.messages);
  Object object;
  object.add_raw("mode", quoted(options.mode_name));
  object.add("connections", options.connections);
  object.add("elapsed", elapsed);
  object.add("messages", messages);
  object.add("steps", static_cast<double>(measurement.steps));
  object.add("messages_per_s", messages / elapsed);
  object.add("steps_per_s", static_cast<double>(measurement.steps) / elapsed);
  object.add("steps_per_s_between", measurement.steps_per_s_between);
  object.add("p50", quantile(latencies, 0.5));
  object.add("p90", quantile(latencies, 0.9));
  object.add("p99", quantile(latencies, 0.99));
  object.add("p999", quantile(latencies, 0.999));
  object.add("max", latencies.empty() ? 0 : latencies.back() * kMicroseconds);
  object.add("reply_bytes", messages > 0 ? static_cast<double>(measurement.reply_bytes) / messages : 0);
  object.add("client_cpu", measurement.client_cpu / elapsed);
  object.add("server_cpu", measurement.watched_cpu / elapsed);
  object.add("server_us_per_step",
             measurement.steps ? measurement.watched_cpu * kMicroseconds / static_cast<double>(measurement.steps) : 0);
  object.add("errors", static_cast<double>(measurement.errors));
  object.add_raw("first_error", quoted(measurement.first_error));
  return object.str();
}
