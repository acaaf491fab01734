// What the programs that check csrc/sm90 on a CPU share: chance, reports, and the swizzle of shared
// memory.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

namespace infodisent {
namespace model {

inline std::mt19937 generator(1);
inline uint32_t below(uint32_t n) { return generator() % n; }

// What is being checked, for reports; or null.
inline const char* context = nullptr;

[[noreturn]] inline void fail(const std::string& what) {
  std::printf("wrong: %s%s%s\n", what.c_str(), context ? ", in: " : "", context ? context : "");
  std::exit(1);
}
inline void check(bool ok, const char* what) {
  if (!ok) fail(what);
}

// The 128-byte swizzle, of the copy engine and of wgmma: bits 4-6 of an address by its bits 7-9.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

}  // namespace model
}  // namespace infodisent
