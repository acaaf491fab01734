// What the CPU models of the kernels for Hopper share: numbers, reports, the swizzle of shared
// memory, and the ring of csrc/sm90/ring.cuh with its barriers, simulated with copies, arrivals and
// warps interleaved at random.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "tile_schedule.h"

namespace infodisent {
namespace model {

inline std::mt19937 generator(1);
inline uint32_t below(uint32_t n) { return generator() % n; }

[[noreturn]] inline void fail(const std::string& what) {
  std::printf("wrong: %s\n", what.c_str());
  std::exit(1);
}
inline void check(bool ok, const char* what) {
  if (!ok) fail(what);
}

// What is left out of the protocol; empty: nothing.
inline std::string mutant;

// The 128-byte swizzle, of the copy engine and of wgmma: bits 4-6 of an address by its bits 7-9.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// An mbarrier: `arrivals` arrivals, and all bytes announced, complete a phase.
struct Barrier {
  int arrivals = 0, pending = 0, phase = 0;
  long bytes = 0;
  void init(int count) { arrivals = pending = count; }
  bool passed(uint32_t parity) const { return phase % 2 != static_cast<int>(parity); }
  void complete() {
    if (pending == 0 && bytes == 0) {
      ++phase;
      pending = arrivals;
    }
  }
  void arrive(long expected = 0) {
    bytes += expected;
    check(pending > 0, "an arrival too many in a phase");
    --pending;
    complete();
  }
  void receive(long count) {
    bytes -= count;
    complete();
  }
};

// The blocks of a cluster, their rings and producers. Model has `warps`, moves them by `move`,
// which is false while a warp must wait, and sends the PARTS copies of a slot by `send`.
template <typename Model, int PARTS>
struct SimulatedRing {
  // Number of the step that each part of a slot is of, counted over all units.
  struct SlotMemory {
    std::vector<int> parts = std::vector<int>(PARTS, -1);
    int readers = 0;
  };
  struct Block {
    std::vector<Barrier> full, empty;
    std::vector<SlotMemory> slots;
    int running = 1;  // threads of control that have not ended: the producer, and those of Model
  };
  // Something on its way: a copy into a slot of one block, or an arrival at a barrier of one.
  static constexpr int kArrival = -1;  // in place of a part: at "empty"
  struct Flight {
    int block, stage, step, part;
  };
  struct Producer {
    int block, step = 0, tail = 0;
    Slot slot = {0, 0};
    bool done = false;
  };
  static constexpr long kBytes = 10;  // of each part

  int cluster, stages, all_steps;
  std::vector<Block> blocks;
  std::vector<Producer> producers;
  std::deque<Flight> flights;

  // all_steps: of all units; arrivals: at "empty".
  SimulatedRing(int cluster, int stages, int all_steps, int arrivals)
      : cluster(cluster), stages(stages), all_steps(all_steps), blocks(cluster) {
    for (int b = 0; b < cluster; ++b) {
      Block& block = blocks[b];
      block.full.resize(stages);
      block.empty.resize(stages);
      block.slots.resize(stages);
      for (Barrier& barrier : block.full) barrier.init(1);
      for (Barrier& barrier : block.empty) barrier.init(arrivals);
      Producer producer;
      producer.block = b;
      producers.push_back(producer);
    }
  }
  Model& model() { return static_cast<Model&>(*this); }

  bool move(Producer& p) {
    if (p.done) return false;
    Block& block = blocks[p.block];
    const bool tail = p.step == all_steps;
    if (tail && (cluster == 1 || p.tail == stages || mutant == "tail")) {
      p.done = true;
      --block.running;
      return true;
    }
    if (!block.empty[p.slot.stage].passed(p.slot.parity ^ 1)) return false;
    if (tail) {
      ++p.tail;
    } else {
      const int stage = static_cast<int>(p.slot.stage);
      block.full[stage].arrive(PARTS * kBytes);
      model().send(p, stage);
      ++p.step;
    }
    p.slot.advance(stages);
    return true;
  }

  void verify(int block, int stage, int step) const {
    for (int part : blocks[block].slots[stage].parts)
      check(part == step, "a slot holds something else than what is read");
  }
  // A warp starts to read a slot, if it is full.
  bool read(int block, Slot slot, int step) {
    if (!blocks[block].full[slot.stage].passed(slot.parity)) return false;
    verify(block, static_cast<int>(slot.stage), step);
    ++blocks[block].slots[slot.stage].readers;
    return true;
  }
  // It has read it.
  void release(int block, int stage, int step) {
    verify(block, stage, step);
    --blocks[block].slots[stage].readers;
    if (cluster == 1) return blocks[0].empty[stage].arrive();
    for (int b = 0; b < cluster; ++b)
      if (mutant != "own" || b == block) flights.push_back({b, stage, step, kArrival});
  }

  void land(const Flight& f) {
    Block& block = blocks[f.block];
    check(block.running > 0, "something comes to a block that has ended");
    if (f.part == kArrival) {
      block.empty[f.stage].arrive();
      return;
    }
    SlotMemory& slot = block.slots[f.stage];
    check(slot.readers == 0, "a copy overwrites what is being read");
    slot.parts[f.part] = f.step;
    block.full[f.stage].receive(kBytes);
  }

  void run() {
    auto& warps = model().warps;
    const uint32_t hurry = below(3);  // slow copies, slow warps, or neither
    int idle = 0;
    for (;;) {
      const size_t actors = producers.size() + warps.size();
      bool moved = false;
      if (!flights.empty() && below(hurry == 0 ? 8 : 2) == 0) {
        // any order: copies and remote arrivals overtake each other
        const size_t i = below(static_cast<uint32_t>(flights.size()));
        const Flight flight = flights[i];
        flights.erase(flights.begin() + static_cast<long>(i));
        land(flight);
        moved = true;
      } else {
        const size_t i = below(static_cast<uint32_t>(actors));
        if (i < producers.size())
          moved = move(producers[i]);
        else if (hurry != 1 || below(4) == 0)
          moved = model().move(warps[i - producers.size()]);
      }
      idle = moved ? 0 : idle + 1;
      bool over = flights.empty();
      for (const Block& block : blocks) over = over && block.running == 0;
      if (over) return;
      check(idle < 20000, "deadlock");
    }
  }
};

}  // namespace model
}  // namespace infodisent
