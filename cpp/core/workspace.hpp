// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace fubini {

/// Memory that is aligned for Vec and stays allocated from call to call; it only grows.
class Workspace {
  public:
    double* reserve(std::size_t doubles) {
        if (doubles > size_) {
            data_.reset();
            size_ = 0;
            data_.reset(
                static_cast<double*>(::operator new[](doubles * sizeof(double), std::align_val_t{64})));
            size_ = doubles;
        }
        return data_.get();
    }
    [[nodiscard]] double* data() const { return data_.get(); }
    /// Large memory is given back after a call.
    void release_if_large() {
        if (size_ * sizeof(double) > keep_bytes) {
            data_.reset();
            size_ = 0;
        }
    }

  private:
    static constexpr std::size_t keep_bytes = std::size_t{64} << 20;
    struct AlignedFree {
        void operator()(double* p) const { ::operator delete[](p, std::align_val_t{64}); }
    };
    std::unique_ptr<double[], AlignedFree> data_;
    std::size_t size_ = 0;
};

/// Gives large memory back at the end of a scope, however it ends.
class ReleaseAfter {
  public:
    explicit ReleaseAfter(Workspace& workspace) : workspace_(workspace) {}
    ~ReleaseAfter() { workspace_.release_if_large(); }
    ReleaseAfter(const ReleaseAfter&) = delete;
    ReleaseAfter& operator=(const ReleaseAfter&) = delete;

  private:
    Workspace& workspace_;
};

}  // namespace fubini
