// loadclient: drives a server over one protocol for some seconds and prints what it saw as one line of JSON.
// Usage: loadclient --mode stream --port 8081 --connections 64 --sessions FILE …; options.h lists the options.
#include <cstdio>
#include <exception>

#include "load.h"
#include "options.h"
#include "report.h"
#include "work.h"

int main(int count, char** arguments) {
  try {
    const Options options = parse_options(count, arguments);
    Dump dump(options.dump);
    Measurement measurement = Load(options, dump).run();
    std::puts(to_json(options, measurement).c_str());
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "loadclient: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "loadclient: %s\n", error.what());
    return 1;
  }
}
