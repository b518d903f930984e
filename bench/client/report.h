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

struct Measurement {
  double begin = 0, end = 0;
  long messages = 0, steps = 0, errors = 0, reply_bytes = 0;
  double first_reply = 0, last_reply = 0;
  double client_cpu = 0, watched_cpu = 0;
  std::vector<float> latencies;  // seconds
  std::string first_error;
};

std::string to_json(const Options& options, Measurement& measurement);
