// Threads, barriers, copies and the order in which things happen.
#include "machine.h"

#include <cstdlib>
#include <cstring>

namespace infodisent {
namespace emulator {

Machine machine;
Fiber* self = nullptr;
std::string planted;
long copies = 0, products_of_warps = 0;
long products_beside = 0, copies_beside = 0, loads = 0;

namespace {
jmp_buf scheduler;

// _setjmp and _longjmp: swapcontext asks the kernel for the mask of signals every time.
__attribute__((noinline)) void resume(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}
void body() {
  (*machine.thread)();
  self->done = true;
  --own_block().running;
  _longjmp(scheduler, 1);
}

Barrier& barrier_of(Block& block, uint32_t offset) {
  const auto found = block.barriers.find(offset);
  if (found == block.barriers.end()) fail("a barrier that was not initialised");
  return found->second;
}
Barrier& own_barrier(uint32_t address) {
  if (rank_of(address) != self->block) fail("another block's barrier as one of this block");
  return barrier_of(own_block(), address & kOffset);
}
void complete(Barrier& barrier) {
  if (std::llabs(barrier.bytes) >= 1 << 20) fail("more bytes than a barrier counts");
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
}
void arrive_on(Barrier& barrier) {
  if (barrier.pending <= 0) fail("an arrival too many");
  --barrier.pending;
  complete(barrier);
}

// The copy engine swizzles addresses, not offsets in the box.
void write_box(Block& block, Flight& flight) {
  for (size_t i = 0; i < flight.box.size(); ++i) {
    const uint32_t at = model::swizzled(flight.to + static_cast<uint32_t>(i));
    if (at >= block.memory.size()) fail("a copy beyond shared memory");
    block.memory[at] = flight.box[i];
  }
  flight.written = true;
}
void land(Flight flight) {
  Block& block = machine.blocks[static_cast<size_t>(flight.block)];
  if (block.running == 0) fail("something comes to a block that has ended");
  Barrier& barrier = barrier_of(block, flight.barrier);
  if (flight.box.empty()) return arrive_on(barrier);
  if (!flight.written) write_box(block, flight);
  barrier.bytes -= static_cast<int64_t>(flight.box.size());
  complete(barrier);
}
void land_any() {  // they overtake each other
  const size_t i = below(static_cast<uint32_t>(machine.flights.size()));
  std::swap(machine.flights[i], machine.flights.back());
  Flight flight = std::move(machine.flights.back());
  machine.flights.pop_back();
  land(std::move(flight));
}

// Lanes of a warp go one after the other, each to where it waits. False: none could.
bool run_warp(size_t warp) {
  bool ran = false;
  const size_t count = machine.fibers.size();
  for (size_t i = 32 * warp; i < smaller(32 * warp + 32, count); ++i) {
    Fiber& fiber = machine.fibers[i];
    if (fiber.done) continue;
    self = &fiber;
    if (fiber.ready != nullptr && !fiber.ready(fiber.condition)) continue;
    fiber.ready = nullptr;
    resume(fiber);
    ran = true;
  }
  self = nullptr;
  return ran;
}
bool ended(size_t warp) {
  for (size_t i = 32 * warp; i < smaller(32 * warp + 32, machine.fibers.size()); ++i)
    if (!machine.fibers[i].done) return false;
  return true;
}

void set_up(int cluster, int threads, size_t shared) {
  constexpr size_t kStack = 48 << 10;
  static std::vector<char*> stacks;
  const size_t warps = (threads + 31) / 32, size = static_cast<size_t>(threads);
  machine.blocks.assign(cluster, {});
  machine.warps.assign(cluster * warps, {});
  machine.fibers.assign(cluster * size, {});
  machine.flights.clear();
  machine.arrived = 0;
  machine.shared_start = 0x400 + 16 * below(65);
  while (stacks.size() < machine.fibers.size())
    stacks.push_back(static_cast<char*>(std::malloc(kStack)));
  for (Block& block : machine.blocks) {
    block.memory.assign(machine.shared_start + shared, 0xff);  // NaN in every dtype
    block.running = threads;
  }
  for (size_t i = 0; i < machine.fibers.size(); ++i) {
    Fiber& fiber = machine.fibers[i];
    fiber.block = static_cast<int>(i / size);
    fiber.thread = static_cast<int>(i % size);
    fiber.lane = fiber.thread % 32;
    fiber.warp = &machine.warps[fiber.block * warps + fiber.thread / 32];
    fiber.warp->block = fiber.block;
    fiber.warp->index = fiber.thread / 32;
    fiber.registers = 65536 / threads / 8 * 8;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks[i];
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, body, 0);
  }
}

void run_cluster() {
  std::vector<size_t> alive(machine.warps.size());
  for (size_t i = 0; i < alive.size(); ++i) alive[i] = i;
  const uint32_t hurry = below(4);  // slow copies, fast ones, neither, or warps that get ahead
  const uint32_t delay = hurry == 0 ? 30 : hurry == 1 ? 1 : 4;
  size_t idle = 0;
  while (!alive.empty() || !machine.flights.empty()) {
    if (!machine.flights.empty() && (alive.empty() || below(delay) == 0)) {
      land_any();
      idle = 0;
    }
    if (alive.empty()) continue;
    const size_t i = below(static_cast<uint32_t>(alive.size()));
    bool ran = false;
    for (uint32_t turns = hurry == 3 ? 1 + below(6) : 1; turns > 0; --turns)
      ran = run_warp(alive[i]) || ran;
    idle = ran ? 0 : idle + 1;
    if (ran && ended(alive[i])) {
      alive[i] = alive.back();
      alive.pop_back();
    }
    if (idle < 1000 || !machine.flights.empty()) continue;
    ran = false;  // long enough without luck: is there any warp that could go on?
    for (size_t warp : alive) ran = run_warp(warp) || ran;
    if (!ran) fail("deadlock");
    idle = 0;
    for (size_t k = alive.size(); k-- > 0;)
      if (ended(alive[k])) alive.erase(alive.begin() + static_cast<long>(k));
  }
  for (const Block& block : machine.blocks)
    for (const auto& barrier : block.barriers)
      if (barrier.second.bytes != 0) fail("bytes that have not come at the end");
  for (const Warp& warp : machine.warps)
    for (const Group& group : warp.groups)
      if (!group.products.empty()) fail("products that nobody waited for");
}

}  // namespace

bool fault(const char* name) { return planted == name; }

void swap_to_scheduler() {
  if (_setjmp(self->state) == 0) _longjmp(scheduler, 1);
}

uint3 thread_index() {
  const auto thread = static_cast<unsigned>(self->thread);
  return {thread % machine.block_size.x, thread / machine.block_size.x, 0};
}
uint3 block_index() { return {static_cast<unsigned>(machine.first_block + self->block), 0, 0}; }
dim3 block_size() { return machine.block_size; }
dim3 grid_size() { return machine.grid_size; }
int lane() { return self->lane; }
uint32_t rank() { return static_cast<uint32_t>(self->block); }

uint32_t dynamic_shared() { return rank() << 24 | machine.shared_start; }
void barrier_init(uint32_t barrier, uint32_t arrivals) {
  const uint32_t offset = barrier & kOffset;
  if (offset % 8 != 0 || offset + 8 > own_block().memory.size()) fail("where a barrier is");
  own_block().barriers[offset] = {static_cast<int>(arrivals), static_cast<int>(arrivals), 0, 0};
}
void arrive(uint32_t barrier) { arrive_on(own_barrier(barrier)); }
void arrive_at(uint32_t barrier, uint32_t rank) {
  if (rank >= machine.blocks.size()) fail("a rank that there is not");
  machine.flights.push_back({static_cast<int>(rank), barrier & kOffset, 0, {}, true});
}
void store_at(uint32_t to, uint32_t rank, const void* from, size_t bytes) {
  if (rank >= machine.blocks.size()) fail("a rank that there is not");
  Block& block = machine.blocks[rank];
  if (block.running == 0) fail("something comes to a block that has ended");
  const uint32_t offset = to & kOffset;
  if (offset % bytes != 0 || offset + bytes > block.memory.size()) fail("where a store goes");
  std::memcpy(&block.memory[offset], from, bytes);
}
void load_shared(uint32_t from, void* to, size_t bytes) {
  const uint32_t offset = from & kOffset;
  if (offset % bytes != 0 || offset + bytes > own_block().memory.size()) fail("where a load is");
  std::memcpy(to, &own_block().memory[offset], bytes);
}
void arrive_expect(uint32_t barrier, uint32_t bytes) {
  own_barrier(barrier).bytes += bytes;
  arrive_on(own_barrier(barrier));
}
bool beside_a_pool() {
  for (const Fiber& fiber : machine.fibers)
    if (fiber.pooling && !fiber.done && fiber.lane == 0 && fiber.block == self->block &&
        fiber.thread / 128 != self->thread / 128)
      return true;
  return false;
}
void wait(uint32_t barrier, uint32_t parity) {
  self->pooling = false;
  if (parity > 1) fail("a parity");
  const Barrier& own = own_barrier(barrier);
  block_until([&] { return own.phase % 2 != parity; });
}
void sync_block() {
  Block& block = own_block();
  const long before = block.syncs;
  if (++block.arrived == block.running) {
    block.arrived = 0;
    ++block.syncs;
  }
  block_until([&] { return block.syncs != before; });
}
void sync_cluster() {
  if (machine.blocks.size() < 2) fail("a cluster of one block");
  const long before = machine.syncs;
  if (++machine.arrived == static_cast<int>(machine.fibers.size())) {
    machine.arrived = 0;
    ++machine.syncs;
  }
  block_until([&] { return machine.syncs != before; });
}
uint64_t shuffle(uint64_t value, int from_lane) {
  Warp& warp = *self->warp;
  const long before = warp.shuffles;
  warp.given[self->lane] = value;
  if (++warp.shuffling == 32) {
    std::memcpy(warp.taken, warp.given, sizeof warp.taken);
    warp.shuffling = 0;
    ++warp.shuffles;
  }
  block_until([&] { return warp.shuffles != before; });
  return warp.taken[from_lane & 31];
}
void change_registers(int count, bool more) {
  Block& block = own_block();
  if (more != (count > self->registers)) fail("setmaxnreg in the wrong direction");
  const int wanted = count - self->registers;
  block_until([&] { return wanted <= 0 || block.free_registers >= wanted; });
  block.free_registers -= wanted;
  self->registers = count;
}

void load_box(uint32_t to, const void* map, int32_t channel, int32_t row, int32_t image,
              uint32_t barrier, uint32_t blocks) {
  TensorMap m;
  std::memcpy(&m, map, sizeof m);
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) fail("where a tensor map is");
  if (beside_a_pool()) ++copies_beside;
  if (rank_of(to) != self->block || rank_of(barrier) != self->block) fail("a copy to elsewhere");
  if ((to & kOffset) % 1024 != 0) fail("a swizzled box begins at a multiple of 1024");
  std::vector<uint8_t> box(static_cast<size_t>(m.box[0]) * m.box[1] * m.box[2] * m.element_bytes);
  size_t at = 0;  // what is outside stays 0
  for (uint32_t z = 0; z < m.box[2]; ++z)
    for (uint32_t y = 0; y < m.box[1]; ++y)
      for (uint32_t x = 0; x < m.box[0]; ++x, at += m.element_bytes) {
        const uint64_t from[3] = {static_cast<uint64_t>(channel + x),
                                  static_cast<uint64_t>(row + y), static_cast<uint64_t>(image + z)};
        if (from[0] >= m.sizes[0] || from[1] >= m.sizes[1] || from[2] >= m.sizes[2]) continue;
        std::memcpy(
            &box[at],
            m.base + from[0] * m.element_bytes + from[1] * m.strides[0] + from[2] * m.strides[1],
            m.element_bytes);
      }
  for (size_t r = 0; r < machine.blocks.size(); ++r) {
    if ((blocks >> r & 1) == 0) continue;
    Flight flight = {static_cast<int>(r), barrier & kOffset, to & kOffset, box, false};
    if (machine.blocks[r].running == 0) fail("something comes to a block that has ended");
    if (below(2)) write_box(machine.blocks[r], flight);  // there long before it counts
    machine.flights.push_back(std::move(flight));
  }
  ++copies;
}

void run_grid(const cudaLaunchConfig_t& config, int cluster, const Thread& thread) {
  machine.thread = &thread;
  machine.block_size = config.blockDim;
  machine.grid_size = config.gridDim;
  const auto threads = static_cast<int>(config.blockDim.x * config.blockDim.y);
  for (unsigned first = 0; first < config.gridDim.x; first += cluster) {
    machine.first_block = static_cast<int>(first);
    set_up(cluster, threads, config.dynamicSmemBytes);
    run_cluster();
  }
}

}  // namespace emulator
}  // namespace infodisent
