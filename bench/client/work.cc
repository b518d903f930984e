#include "work.h"

#include <optional>
#include <utility>

#include "messages.h"

namespace {

using messages::Answer;

constexpr long kMostDumped = 2000;

// Whether steps go to tidegate's sequences, whose replies tell no position.
bool is_sequence(Mode mode) { return mode == Mode::infer || mode == Mode::infer_stream; }

// One session's way: which tokens come next, and at which position it must be after them.
class Course {
 public:
  Course(const Options& options, long index, Dump& dump)
      : session_(options.sessions[index]), index_(index), chunk_(options.chunk), vocabulary_(options.vocabulary),
        is_echo_(options.is_echo), with_position_(options.with_position), has_positions_(!is_sequence(options.mode)),
        is_dumped_(dump.is_wanted() && (index == 0 || index + 1 == long{options.connections} * options.lanes)),
        dump_(dump) {}

  const std::string& session() const { return session_; }

  void put_tokens(std::vector<int>& tokens) {
    for (int at = 0; at < chunk_; ++at) tokens.push_back(scheduled_token(index_, sent_++, vocabulary_));
  }

  messages::Step next() {
    messages::Step step;
    step.session = session_;
    if (with_position_) step.position = sent_;
    put_tokens(step.tokens);
    return step;
  }

  // Whether the session is where it must be. It may have come from elsewhere: the first answer tells its start.
  bool arrive(const Answer& answer) {
    answered_ += chunk_;
    if (answered_ == chunk_ && has_positions_) start_ = answer.position - answered_;
    if (is_dumped_) dump_.write(index_, answered_ - 1, answer.id, answer.probability, answer.surprise);
    return answer.probability > 0 && (!has_positions_ || is_placed(answer.position));
  }

 private:
  bool is_placed(uint64_t position) const {
    return is_echo_ ? position > 0 : position == static_cast<uint64_t>(start_ + answered_);
  }

  std::string session_;
  long index_, sent_ = 0, answered_ = 0, start_ = 0;
  int chunk_, vocabulary_;
  bool is_echo_, with_position_, has_positions_, is_dumped_;
  Dump& dump_;
};

// Steps of one session, a chunk a message; how they are written and read depends on the protocol.
class SessionWork : public Work {
 public:
  SessionWork(const Options& options, int connection, Dump& dump)
      : mode_(options.mode), options_(options), chunk_(options.chunk), course_(options, connection, dump) {}

  std::string request() override {
    messages::Step step = course_.next();
    if (mode_ == Mode::unary) return messages::step_request(step);
    if (mode_ == Mode::json) return messages::json_form(options_.json, step);
    const bool is_first = std::exchange(is_first_, false);
    if (mode_ == Mode::inference) return messages::inference_request(options_.model, step, is_first);
    if (is_sequence(mode_)) return messages::sequence_request(options_.model, step, is_first);
    if (mode_ != Mode::stream) return messages::json_step(step);
    // A stream's session is named by its first message.
    if (!is_first) step.session = {};
    return messages::stream_step(step);
  }

  Outcome reply(std::string_view message) override {
    std::string error;
    const std::optional<Answer> answer = decode(message, error);
    if (answer && course_.arrive(*answer)) return {chunk_, ""};
    if (answer) return {0, "not the position or probability of a real answer: " + std::to_string(answer->position)};
    return {0, error.empty() ? "not a reply: " + std::string(message.substr(0, 200)) : error};
  }

 private:
  std::optional<Answer> decode(std::string_view message, std::string& error) const {
    if (mode_ == Mode::unary) return messages::step_reply(message);
    if (mode_ == Mode::inference) return messages::inference_reply(message, error);
    if (is_sequence(mode_)) return messages::sequence_reply(message, error);
    return mode_ == Mode::stream ? messages::stream_reply(message, error) : messages::json_reply(message);
  }

  Mode mode_;
  const Options& options_;
  long chunk_;
  Course course_;
  bool is_first_ = true;
};

// Steps of many sessions, all in each message, after one that attaches them.
class ColumnarWork : public Work {
 public:
  ColumnarWork(const Options& options, int connection, Dump& dump) : chunk_(options.chunk) {
    const long first = long{connection} * options.lanes;
    for (long index = first; index < first + options.lanes; ++index) courses_.emplace_back(options, index, dump);
  }

  std::string request() override {
    if (!is_attaching_ && !is_attached_) {
      is_attaching_ = true;
      std::vector<std::string> sessions;
      for (const Course& course : courses_) sessions.push_back(course.session());
      return messages::stream_attach(sessions);
    }
    std::vector<int> tokens;
    for (Course& course : courses_) course.put_tokens(tokens);
    return messages::stream_columns(courses_.size(), chunk_, tokens);
  }

  bool is_exclusive() const override { return is_attaching_; }

  Outcome reply(std::string_view message) override {
    std::string error;
    if (is_attaching_) {
      is_attaching_ = false;
      is_attached_ = messages::is_attached(message, error);
      return {0, is_attached_ ? "" : "not attached: " + error};
    }
    const auto answers = messages::columns_reply(message, error);
    if (!answers || answers->size() != courses_.size()) return {0, "not the lanes' answers: " + error};
    for (size_t lane = 0; lane < courses_.size(); ++lane) {
      if (!courses_[lane].arrive((*answers)[lane])) return {0, "lane " + std::to_string(lane) + ": wrong position"};
    }
    return {chunk_ * static_cast<long>(courses_.size()), ""};
  }

 private:
  long chunk_;
  std::vector<Course> courses_;
  bool is_attaching_ = false, is_attached_ = false;
};

// The same body again and again.
class PostWork : public Work {
 public:
  PostWork(const Options& options, int connection)
      : body_(options.bodies[connection % options.bodies.size()]),
        steps_(options.steps[connection % options.steps.size()]) {}

  std::string request() override { return body_; }

  Outcome reply(std::string_view message) override {
    if (message.size() < 2 || message.back() != '}') return {0, "not a JSON object"};
    return {steps_, ""};
  }

 private:
  std::string body_;
  long steps_;
};

// Streamed generation: many messages answer a request, the last one says that it is done.
class GenerateWork : public Work {
 public:
  GenerateWork(const Options& options, int connection) : options_(options), seed_(connection) {}

  std::string request() override {
    return messages::generate_request(options_.model, options_.prompt, options_.max_tokens, ++seed_);
  }

  Outcome reply(std::string_view message) override {
    switch (messages::generate_reply(message)) {
      case messages::Event::token:
        return {1, ""};
      case messages::Event::done:
        return {0, ""};
      default:
        return {0, "neither a token nor the end"};
    }
  }

 private:
  const Options& options_;
  uint64_t seed_;
};

}  // namespace

int scheduled_token(long session, long step, int vocabulary) {
  return static_cast<int>((session * 7 + step * 13 + 5) % vocabulary);
}

Dump::Dump(const std::string& path) {
  if (path.empty()) return;
  file_.open(path);
  if (!file_) throw UsageError("cannot write " + path);
  file_.precision(9);
}

void Dump::write(long session, long step, int64_t id, double probability, double surprise) {
  if (num_written_++ >= kMostDumped) return;
  file_ << "{\"session\": " << session << ", \"step\": " << step << ", \"id\": " << id
        << ", \"probability\": " << probability << ", \"surprise\": " << surprise << "}\n";
}

std::unique_ptr<Work> make_work(const Options& options, int connection, Dump& dump) {
  switch (options.mode) {
    case Mode::columnar:
      return std::make_unique<ColumnarWork>(options, connection, dump);
    case Mode::post:
      return std::make_unique<PostWork>(options, connection);
    case Mode::generate:
      return std::make_unique<GenerateWork>(options, connection);
    default:
      return std::make_unique<SessionWork>(options, connection, dump);
  }
}
