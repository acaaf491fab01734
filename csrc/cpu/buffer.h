// Memory for the length of a call, on cache lines.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace infodisent {

constexpr std::size_t kHugePage = 2 << 20;

struct AlignedDelete {
  std::align_val_t alignment{64};
  void operator()(void* p) const { ::operator delete(p, alignment); }
};
template <typename E>
using Buffer = std::unique_ptr<E[], AlignedDelete>;

// Advice for a result that is about to be written: memory of this size comes fresh from the system,
// and filling its pages with zeros one by one takes longer than writing the result (64 MiB: 38 ms
// of 47 on a Zen 4).
inline void prefer_huge_pages(void* p, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kFresh = 32 << 20;  // the most that the C library keeps of what is freed
  if (bytes < kFresh) return;
  const auto first = (reinterpret_cast<std::uintptr_t>(p) + kHugePage - 1) / kHugePage;
  const auto last =
      (reinterpret_cast<std::uintptr_t>(p) + static_cast<std::size_t>(bytes)) / kHugePage;
  madvise(reinterpret_cast<void*>(first * kHugePage), (last - first) * kHugePage, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

// Not initialised. Large ones ask for huge pages: at the first touch of each 4 KiB the system fills
// them with zeros, a seventh of the time of screening at C = 512, B = 64.
template <typename E>
Buffer<E> buffer(int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(std::max<int64_t>(count, 1)) * sizeof(E);
#if defined(__linux__)
  if (bytes >= kHugePage) {
    const std::size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    const std::align_val_t alignment{kHugePage};
    void* p = ::operator new(whole, alignment);
    madvise(p, whole, MADV_HUGEPAGE);  // advice: without it everything works, too
    return Buffer<E>(static_cast<E*>(p), AlignedDelete{alignment});
  }
#endif
  return Buffer<E>(static_cast<E*>(::operator new(bytes, std::align_val_t{64})));
}

}  // namespace infodisent
