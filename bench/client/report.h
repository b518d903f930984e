// Figures of one measurement: counted while it runs, printed as one line of JSON.
#pragma once

#include <string>
#include <vector>

#include "options.h"

// Seconds of a clock that only rises.
double now();
// CPU seconds of this process.
double own_cpu();
// CPU seconds, user and system, of other processes with all their threads, from /proc; their resolution is 10 ms.
double cpu_of(const std::vector<int>& processes);

// One connection's rate between its first and its last reply: right also where replies are rare, or come in waves, and
// the ends of the measurement cut through them.
struct Pace {
  long messages = 0, steps = 0;
  double first = 0, last = 0;

  void add(long new_steps, double time);
  double steps_per_s(double elapsed) const;
};

struct Measurement {
  double begin = 0, end = 0;
  long messages = 0, steps = 0, errors = 0, reply_bytes = 0;
  double steps_per_s_between = 0;  // the sum of the connections' paces
  double client_cpu = 0, watched_cpu = 0;
  std::vector<float> latencies;  // seconds
  std::string first_error;
};

std::string to_json(const Options& options, Measurement& measurement);
