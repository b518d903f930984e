// The Open Inference Protocol's messages. For one step as the peers' applications take and give it: a request with the
// input `tokens` [1, 1]; a response with the outputs `position`, `id`, `probability` and `surprise`, one number each.
// And for tidegate, which gives the graph's own outputs: `logits` [1, steps, vocabulary] and `surprise` [1, steps].
#include <algorithm>
#include <cmath>
#include <cstring>

#include "messages.h"
#include "wire.h"

namespace messages {
namespace {

using wire::put_bytes;
using wire::put_number;
using wire::Reader;

// An entry of `parameters`, its value already encoded as an InferParameter.
std::string parameter(std::string_view name, const std::string& value) {
  std::string out;
  put_bytes(out, 1, name);
  put_bytes(out, 2, value);
  return out;
}

std::string of_text(std::string_view text) {
  std::string out;
  put_bytes(out, 3, text);
  return out;
}

std::string of_bool(bool value) {
  std::string out;
  put_number(out, 1, value);
  return out;
}

std::string of_number(uint64_t value) {
  std::string out;
  put_number(out, 2, value);
  return out;
}

std::string raw_tokens_input(size_t length) {
  std::string shape, out;
  wire::put_varint(shape, 1);
  wire::put_varint(shape, length);
  put_bytes(out, 1, "tokens");
  put_bytes(out, 2, "INT64");
  put_bytes(out, 3, shape);
  return out;
}

std::string raw_tokens(const std::vector<int>& tokens) {
  const std::vector<int64_t> wide(tokens.begin(), tokens.end());
  return {reinterpret_cast<const char*>(wide.data()), wide.size() * sizeof(int64_t)};
}

std::string tokens_input(int token) {
  std::string numbers, contents, out;
  wire::put_varint(numbers, token);
  put_bytes(contents, 3, numbers);
  put_bytes(out, 1, "tokens");
  put_bytes(out, 2, "INT64");
  put_bytes(out, 3, std::string("\x01\x01", 2));
  put_bytes(out, 5, contents);
  return out;
}

// One number: an integer or a float, given as a field of InferTensorContents or as raw bytes.
struct Number {
  uint64_t integer = 0;
  float real = 0;
};

struct Output {
  std::string_view name;
  Number number;
  std::string_view raw;
};

Number read_contents(std::string_view contents) {
  Number number;
  for (Reader reader(contents); reader.next();) {
    std::string_view bytes = reader.bytes();
    if (reader.field() == 3) wire::take_varint(bytes, number.integer);
    if (reader.field() == 6 && bytes.size() >= sizeof(float)) number.real = wire::packed_float(bytes, 0);
  }
  return number;
}

Number read_raw(std::string_view bytes) {
  Number number;
  if (bytes.size() == sizeof number.integer) std::memcpy(&number.integer, bytes.data(), bytes.size());
  if (bytes.size() == sizeof number.real) number.real = wire::packed_float(bytes, 0);
  return number;
}

Output read_output(std::string_view message) {
  Output output;
  for (Reader reader(message); reader.next();) {
    if (reader.field() == 1) output.name = reader.bytes();
    if (reader.field() == 5) output.number = read_contents(reader.bytes());
  }
  return output;
}

std::vector<Output> read_outputs(std::string_view response) {
  std::vector<Output> outputs;
  size_t num_raw = 0;
  for (Reader reader(response); reader.next();) {
    if (reader.field() == 5) outputs.push_back(read_output(reader.bytes()));
    if (reader.field() == 6 && num_raw < outputs.size()) {
      Output& output = outputs[num_raw++];
      output.raw = reader.bytes();
      output.number = read_raw(output.raw);
    }
  }
  return outputs;
}

// The response inside Triton's ModelStreamInferResponse; its error is told in `error`.
std::string_view unwrapped(std::string_view reply, std::string& error) {
  std::string_view response;
  for (Reader reader(reply); reader.next();) {
    if (reader.field() == 1) error = reader.bytes();
    if (reader.field() == 2) response = reader.bytes();
  }
  return response;
}

// The outputs of a reply, bare or wrapped.
std::vector<Output> all_outputs(std::string_view reply, std::string& error) {
  std::vector<Output> outputs = read_outputs(reply);
  return outputs.empty() ? read_outputs(unwrapped(reply, error)) : outputs;
}

std::string_view raw_of(const std::vector<Output>& outputs, std::string_view name) {
  const auto found = std::find_if(outputs.begin(), outputs.end(), [name](const Output& out) { return out.name == name; });
  return found == outputs.end() ? std::string_view() : found->raw;
}

std::vector<float> floats(std::string_view raw) {
  std::vector<float> values(raw.size() / sizeof(float));
  std::memcpy(values.data(), raw.data(), values.size() * sizeof(float));
  return values;
}

}  // namespace

std::string inference_request(std::string_view model, const Step& step, bool is_first) {
  std::string out;
  put_bytes(out, 1, model);
  put_bytes(out, 4, parameter("sequence_id", of_text(step.session)));
  if (is_first) put_bytes(out, 4, parameter("sequence_start", of_bool(true)));
  put_bytes(out, 5, tokens_input(step.tokens.front()));
  return out;
}

std::optional<Answer> inference_reply(std::string_view reply, std::string& error) {
  Answer answer;
  size_t num_found = 0;
  for (const auto& [name, number, raw] : all_outputs(reply, error)) {
    ++num_found;
    if (name == "position") answer.position = number.integer;
    else if (name == "id") answer.id = static_cast<int64_t>(number.integer);
    else if (name == "probability") answer.probability = number.real;
    else if (name == "surprise") answer.surprise = number.real;
    else --num_found;
  }
  if (num_found < 4) return std::nullopt;
  return answer;
}

std::string sequence_request(std::string_view model, const Step& step, bool is_first) {
  std::string out;
  put_bytes(out, 1, model);
  put_bytes(out, 4, parameter("sequence_id", of_number(std::stoull(std::string(step.session)))));
  put_bytes(out, 4, parameter("sequence_start", of_bool(is_first)));
  put_bytes(out, 4, parameter("sequence_end", of_bool(false)));
  put_bytes(out, 5, raw_tokens_input(step.tokens.size()));
  put_bytes(out, 7, raw_tokens(step.tokens));
  return out;
}

std::optional<Answer> sequence_reply(std::string_view reply, std::string& error) {
  const std::vector<Output> outputs = all_outputs(reply, error);
  const std::vector<float> surprises = floats(raw_of(outputs, "surprise")), logits = floats(raw_of(outputs, "logits"));
  if (surprises.empty() || logits.empty() || logits.size() % surprises.size()) return std::nullopt;
  const auto last = logits.end() - static_cast<long>(logits.size() / surprises.size());
  const auto best = std::max_element(last, logits.end());
  float sum = 0;
  for (auto logit = last; logit != logits.end(); ++logit) sum += std::exp(*logit - *best);
  return Answer{0, best - last, 1 / sum, surprises.back()};
}

}  // namespace messages
