// The load: all connections in one epoll loop, each sending its next request when a reply has come (closed loop) or
// when its turn has come (fixed rate). Knows sockets and clocks, not protocols or messages.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "options.h"
#include "report.h"
#include "work.h"

class Connection;

class Load {
 public:
  // Connects. Throws std::runtime_error where that fails.
  Load(const Options& options, Dump& dump);
  ~Load();
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  // Runs warm-up and measurement; returns when both are over or nothing is left to measure.
  Measurement run();

 private:
  friend class Connection;

  void run_until(double end);
  void wait(double until);
  // With a fixed rate: lets connections, in turn, send what is due by now. Latency counts from when it was due.
  void give_turns();
  double next_turn() const;
  bool is_hopeless() const;

  // From connections:
  void count_reply(long steps, size_t bytes);
  void count_end(double due);
  void count_error(std::string_view text);
  void lose_connection() { ++num_lost_; }

  Options options_;
  Measurement measurement_;
  std::vector<std::unique_ptr<Connection>> connections_;
  long num_turns_ = 0;
  double start_ = 0;
  int epoll_ = -1;
  int num_lost_ = 0;
  bool is_measuring_ = false;
};
