// What one connection asks, and whether the answers are real. Knows sessions and messages, not protocols or sockets.
#pragma once

#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "options.h"

// What a reply was: so many steps done, or an error's text.
struct Outcome {
  long steps = 0;
  std::string error;
};

class Work {
 public:
  virtual ~Work() = default;
  // The payload of the next request.
  virtual std::string request() = 0;
  // Judges one reply message; replies come in the order of the requests.
  virtual Outcome reply(std::string_view message) = 0;
  // Whether nothing may be in flight beside the request just made (an attachment, say).
  virtual bool is_exclusive() const { return false; }
};

// The token that session number `session` is given as its `step`-th; bench/answers.py has the same formula.
int scheduled_token(long session, long step, int vocabulary);

// Where the answers of two sessions are kept, a JSON object a line, so that others can compare them.
class Dump {
 public:
  explicit Dump(const std::string& path);
  bool is_wanted() const { return file_.is_open(); }
  void write(long session, long step, int64_t id, double probability, double surprise);

 private:
  std::ofstream file_;
  long num_written_ = 0;
};

// The work of connection number `connection`; `dump` outlives it.
std::unique_ptr<Work> make_work(const Options& options, int connection, Dump& dump);
