// EMULATION: stands in for csrc/sm90/ptx.cuh, function by function. What is only for the compiler
// or for the order of memory does nothing here, and so is not tested: fences, touch, prefetch.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace infodisent {
namespace sm90 {

inline uint32_t dynamic_shared() { return emulator::dynamic_shared(); }
inline void barrier_init(uint32_t barrier, uint32_t arrivals) {
  emulator::barrier_init(barrier, arrivals);
}
inline void barrier_init_fence() {}
inline void arrive(uint32_t barrier) { emulator::arrive(barrier); }
inline void arrive_at(uint32_t barrier, uint32_t rank) { emulator::arrive_at(barrier, rank); }
inline void arrive_expect(uint32_t barrier, uint32_t bytes) {
  emulator::arrive_expect(barrier, bytes);
}
inline void wait(uint32_t barrier, uint32_t parity) { emulator::wait(barrier, parity); }

inline uint32_t cluster_rank() { return emulator::rank(); }
inline void cluster_sync() { emulator::sync_cluster(); }

struct Words {
  uint32_t w[4];
};
inline void store_at(uint32_t to, uint32_t rank, const Words& words) {
  emulator::store_at(to, rank, words.w, sizeof words.w);
}
inline Words load_words(uint32_t from) {
  Words words;
  emulator::load_shared(from, words.w, sizeof words.w);
  return words;
}
inline void publish_at(uint32_t barrier, uint32_t rank) { emulator::arrive_at(barrier, rank); }
inline void wait_for_cluster(uint32_t barrier, uint32_t parity) { emulator::wait(barrier, parity); }

inline void prefetch(const CUtensorMap*) {}
inline void load_box(uint32_t to, const CUtensorMap* map, int32_t channel, int32_t row,
                     int32_t image, uint32_t barrier) {
  emulator::load_box(to, map, channel, row, image, barrier, 1u << emulator::rank());
}
inline void load_box_everywhere(uint32_t to, const CUtensorMap* map, int32_t channel, int32_t row,
                                int32_t image, uint32_t barrier, uint16_t blocks) {
  emulator::load_box(to, map, channel, row, image, barrier, blocks);
}

inline bool elected() { return emulator::lane() == 0; }
inline int32_t anew(int32_t value) {  // all lanes must call it, as they must there
  return static_cast<int32_t>(emulator::shuffle(static_cast<uint32_t>(value), emulator::lane()));
}
template <int COUNT>
void fewer_registers() {
  emulator::change_registers(COUNT, false);
}
template <int COUNT>
void more_registers() {
  emulator::change_registers(COUNT, true);
}

inline void wgmma_fence() {}
inline void wgmma_commit() { emulator::commit(); }
template <int PENDING>
void wgmma_wait() {
  emulator::wait_products(PENDING);
}
template <int COUNT>
void touch(float (&)[COUNT]) {}

template <int N, typename T>
struct Wgmma {
  static void run(float (&d)[N / 2], uint64_t a, uint64_t b, int32_t accumulate) {
    const bool is_float16 = std::is_same<T, __half>::value;
    emulator::product({N, sizeof(T), is_float16, accumulate != 0, d, nullptr, a, b});
  }
};
template <typename T>
struct WgmmaOfRegisters {
  static void run(float (&d)[128], const uint32_t* a, uint64_t b, int32_t accumulate) {
    const bool is_float16 = std::is_same<T, __half>::value;
    emulator::product({256, sizeof(T), is_float16, accumulate != 0, d, a, 0, b});
  }
};

}  // namespace sm90
}  // namespace infodisent
