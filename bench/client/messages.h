// The messages of proto/tidegate/v1 and their JSON twins that carry steps: requests encoded, replies decoded.
// Field numbers stand here alone. Knows nothing of connections or of what a session has seen before.
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

// Nothing where the reply is no such message; a refusal is told in `error`.
std::optional<Answer> step_reply(std::string_view reply);
std::optional<Answer> stream_reply(std::string_view reply, std::string& error);
// One answer for each of the lanes 0, 1, …; nothing where a lane failed.
std::optional<std::vector<Answer>> columns_reply(std::string_view reply, std::string& error);
// Whether the reply attaches every lane.
bool is_attached(std::string_view reply, std::string& error);
std::optional<Answer> json_reply(std::string_view reply);

enum class Event { token, done, unknown };
Event generate_reply(std::string_view reply);

}  // namespace messages
