// Pointers as the bindings get them from Python: integers, as tensor.data_ptr() gives them.
#pragma once
#include <cstdint>

namespace infodisent {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace infodisent
