// The messages that carry steps: those of proto/tidegate/v1, their JSON twins, and what peers speak. Requests encoded,
// replies decoded. Field numbers stand here alone, those of the Open Inference Protocol in inference.cc. Knows nothing of
// connections or of what a session has seen before.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace messages {

// One step's reply, for one session.
struct Answer {
  uint64_t position = 0;
  int64_t id = 0;  // of the most probable next token
  float probability = 0;
  float surprise = 0;
};

// What a request carries; a position below zero is left out.
struct Step {
  std::string_view session;
  int64_t position = -1;
  std::vector<int> tokens;
};

std::string step_request(const Step& step);
std::string stream_step(const Step& step);
std::string stream_attach(const std::vector<std::string>& sessions);
// One chunk of equal length for each of the lanes 0, 1, …; tokens are packed lane by lane.
std::string stream_columns(size_t lanes, size_t length, const std::vector<int>& tokens);
std::string generate_request(std::string_view model, std::string_view prompt, int max_tokens, uint64_t seed);
std::string json_step(const Step& step);
// A peer's body: `form` with the step's session for SESSION and its first token for TOKEN.
std::string json_form(std::string form, const Step& step);
// A ModelInferRequest of the Open Inference Protocol, with the parameters by which servers tell sequences apart.
std::string inference_request(std::string_view model, const Step& step, bool is_first);
// The same as stock clients write it, for tidegate: the sequence is a number, each token raw bytes of the input `tokens`.
std::string sequence_request(std::string_view model, const Step& step, bool is_first);

// Nothing where the reply is no such message; a refusal is told in `error`.
std::optional<Answer> step_reply(std::string_view reply);
std::optional<Answer> stream_reply(std::string_view reply, std::string& error);
// One answer for each of the lanes 0, 1, …; nothing where a lane failed.
std::optional<std::vector<Answer>> columns_reply(std::string_view reply, std::string& error);
// Whether the reply attaches every lane.
bool is_attached(std::string_view reply, std::string& error);
// The surprise may be the number of "surprise" itself.
std::optional<Answer> json_reply(std::string_view reply);
// Outputs called position, id, probability and surprise; from a ModelInferResponse, or wrapped as Triton's streams do.
std::optional<Answer> inference_reply(std::string_view reply, std::string& error);
// Raw outputs called logits and surprise, of which the last step is read; there is no position. Bare or wrapped as above.
std::optional<Answer> sequence_reply(std::string_view reply, std::string& error);

enum class Event { token, done, unknown };
Event generate_reply(std::string_view reply);

}  // namespace messages
