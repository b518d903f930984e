#include "messages.h"

#include <cstdlib>

#include "wire.h"

namespace messages {
namespace {

using wire::put_bytes;
using wire::put_number;
using wire::Reader;

std::string packed(const std::vector<int>& numbers) {
  std::string out;
  for (int number : numbers) wire::put_varint(out, number);
  return out;
}

std::vector<uint64_t> unpacked(std::string_view bytes) {
  std::vector<uint64_t> numbers;
  for (uint64_t number; !bytes.empty() && wire::take_varint(bytes, number);) numbers.push_back(number);
  return numbers;
}

std::string wrapped(int field, std::string_view message) {
  std::string out;
  put_bytes(out, field, message);
  return out;
}

void read_candidate(std::string_view message, Answer& answer) {
  for (Reader reader(message); reader.next();) {
    if (reader.field() == 2) answer.id = static_cast<int64_t>(reader.number());
    if (reader.field() == 3) answer.probability = reader.as_float();
  }
}

// The first candidate of the first step.
void read_candidates(std::string_view message, Answer& answer) {
  Reader reader(message);
  if (reader.next() && reader.field() == 1) read_candidate(reader.bytes(), answer);
}

void read_prediction(std::string_view message, Answer& answer) {
  for (Reader reader(message); reader.next();) {
    if (reader.field() == 2) read_candidates(reader.bytes(), answer);
    if (reader.field() == 5) {
      Reader surprise(reader.bytes());
      if (surprise.next() && surprise.field() == 1) answer.surprise = surprise.as_float();
    }
  }
}

// A tidegate.v1.Error: its reason and message.
std::string error_text(std::string_view message) {
  std::string text;
  for (Reader reader(message); reader.next();) {
    if (reader.field() == 2 || reader.field() == 3) text += (text.empty() ? "" : ": ") + std::string(reader.bytes());
  }
  return text;
}

std::string lane_error_text(std::string_view message) {
  for (Reader reader(message); reader.next();) {
    if (reader.field() == 2) return error_text(reader.bytes());
  }
  return "a lane failed";
}

struct Columns {
  std::vector<uint64_t> positions;
  std::vector<uint64_t> ids;
  std::string_view probabilities;
  std::string_view surprise;

  bool is_complete() const {
    const size_t lanes = positions.size();
    return ids.size() == lanes && probabilities.size() == lanes * 4 && surprise.size() == lanes * 4;
  }
  Answer answer(size_t lane) const {
    return {positions[lane], static_cast<int64_t>(ids[lane]), wire::packed_float(probabilities, lane),
            wire::packed_float(surprise, lane)};
  }
};

// The text after `"key":` in compact JSON, empty where there is none.
const char* json_value(std::string_view json, std::string_view key) {
  const size_t at = json.find(key);
  return at == std::string_view::npos ? nullptr : json.data() + at + key.size();
}

}  // namespace

std::string step_request(const Step& step) {
  std::string out;
  if (!step.session.empty()) put_bytes(out, 1, step.session);
  if (step.position >= 0) put_number(out, 2, step.position);
  put_bytes(out, 4, packed(step.tokens));
  return out;
}

std::string stream_step(const Step& step) { return wrapped(1, step_request(step)); }

std::string stream_attach(const std::vector<std::string>& sessions) {
  std::string out;
  for (const auto& session : sessions) put_bytes(out, 2, session);
  return wrapped(2, out);
}

std::string stream_columns(size_t lanes, size_t length, const std::vector<int>& tokens) {
  std::vector<int> numbers(lanes);
  for (size_t lane = 0; lane < lanes; ++lane) numbers[lane] = static_cast<int>(lane);
  std::string out;
  put_bytes(out, 1, packed(numbers));
  if (length > 1) put_bytes(out, 2, packed(std::vector<int>(lanes, static_cast<int>(length))));
  put_bytes(out, 4, packed(tokens));
  return wrapped(3, out);
}

std::string generate_request(std::string_view model, std::string_view prompt, int max_tokens, uint64_t seed) {
  static constexpr char kTemperature[] = "\x35\xcd\xcc\x4c\x3f";  // field 6, fixed32: 0.8
  static constexpr char kTopP[] = "\x45\x33\x33\x73\x3f";         // field 8, fixed32: 0.95
  std::string out;
  put_bytes(out, 1, model);
  put_bytes(out, 3, prompt);
  put_number(out, 5, max_tokens);
  out += kTemperature;
  out += kTopP;
  put_number(out, 9, seed);
  return out;
}

std::string json_step(const Step& step) {
  std::string out = "{\"tokens\":[";
  for (size_t at = 0; at < step.tokens.size(); ++at) out += (at ? "," : "") + std::to_string(step.tokens[at]);
  out += ']';
  if (step.position >= 0) out += ",\"position\":" + std::to_string(step.position);
  return out + '}';
}

std::string json_form(std::string form, const Step& step) {
  const auto fill = [&form](std::string_view name, std::string_view value) {
    if (const size_t at = form.find(name); at != std::string::npos) form.replace(at, name.size(), value);
  };
  fill("SESSION", step.session);
  fill("TOKEN", std::to_string(step.tokens.front()));
  return form;
}

std::optional<Answer> step_reply(std::string_view reply) {
  Answer answer;
  bool has_prediction = false;
  Reader reader(reply);
  while (reader.next()) {
    if (reader.field() == 2) answer.position = reader.number();
    if (reader.field() == 3) {
      has_prediction = true;
      read_prediction(reader.bytes(), answer);
    }
  }
  if (reader.is_broken() || !has_prediction) return std::nullopt;
  return answer;
}

std::optional<Answer> stream_reply(std::string_view reply, std::string& error) {
  Reader reader(reply);
  if (!reader.next()) return std::nullopt;
  if (reader.field() == 4) error = error_text(reader.bytes());
  return reader.field() == 1 ? step_reply(reader.bytes()) : std::nullopt;
}

std::optional<std::vector<Answer>> columns_reply(std::string_view reply, std::string& error) {
  Reader outer(reply);
  if (!outer.next()) return std::nullopt;
  if (outer.field() == 4) error = error_text(outer.bytes());
  if (outer.field() != 3) return std::nullopt;
  Columns columns;
  for (Reader reader(outer.bytes()); reader.next();) {
    if (reader.field() == 2) columns.positions = unpacked(reader.bytes());
    if (reader.field() == 4) columns.ids = unpacked(reader.bytes());
    if (reader.field() == 5) columns.probabilities = reader.bytes();
    if (reader.field() == 8) columns.surprise = reader.bytes();
    if (reader.field() == 9) error = lane_error_text(reader.bytes());
  }
  if (!error.empty() || !columns.is_complete()) return std::nullopt;
  std::vector<Answer> answers;
  for (size_t lane = 0; lane < columns.positions.size(); ++lane) answers.push_back(columns.answer(lane));
  return answers;
}

bool is_attached(std::string_view reply, std::string& error) {
  Reader outer(reply);
  if (!outer.next()) return false;
  if (outer.field() == 4) error = error_text(outer.bytes());
  if (outer.field() != 2) return false;
  for (Reader reader(outer.bytes()); reader.next();) {
    if (reader.field() == 3) error = lane_error_text(reader.bytes());
  }
  return error.empty();
}

std::optional<Answer> json_reply(std::string_view reply) {
  // strtod stops at the comma or brace that follows; a reply ends with one, or with the bracket of a list.
  if (reply.empty() || (reply.back() != '}' && reply.back() != ']')) return std::nullopt;
  const char* position = json_value(reply, "\"position\":");
  const char* id = json_value(reply, "\"id\":");
  const char* probability = json_value(reply, "\"probability\":");
  const char* mean = json_value(reply, "\"mean\":");
  const char* surprise = mean ? mean : json_value(reply, "\"surprise\":");
  if (!position || !id || !probability || !surprise) return std::nullopt;
  return Answer{std::strtoull(position, nullptr, 10), std::atoll(id), std::strtof(probability, nullptr),
                std::strtof(surprise, nullptr)};
}

Event generate_reply(std::string_view reply) {
  Reader reader(reply);
  if (!reader.next()) return Event::unknown;
  return reader.field() == 1 ? Event::token : reader.field() == 2 ? Event::done : Event::unknown;
}

}  // namespace messages
