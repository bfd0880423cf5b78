// SPDX-License-Identifier: Apache-2.0
#include "core/metric_schedule.hpp"

#include <algorithm>
#include <cmath>

#include "core/gram.hpp"

namespace fubini {

Schedule::Schedule(const Program& program, const Directions& wanted, Frame frame) : directions(wanted) {
    const Plan& plan = program.plan();
    std::vector<std::vector<int>> angle_steps(static_cast<std::size_t>(program.angles()));
    for (std::size_t s = 0; s < plan.steps.size(); ++s) {
        const Step& step = plan.steps[s];
        for (int i = step.first; i < step.first + step.count; ++i) {
            const BlockRotation& rotation = plan.rotations[static_cast<std::size_t>(i)];
            if (rotation.slot < 0 || rotation.coefficient == 0) continue;
            std::vector<int>& steps = angle_steps[static_cast<std::size_t>(rotation.slot)];
            if (steps.empty() || steps.back() != static_cast<int>(s)) steps.push_back(static_cast<int>(s));
        }
    }
    std::vector<std::vector<int>> steps_of(directions.size());
    for (std::size_t p = 0; p < directions.size(); ++p) {
        const int first = directions.start[p], last = directions.start[p + 1];
        for (int e = first; e < last; ++e) {
            const auto entry = static_cast<std::size_t>(e);
            if (directions.coefficient[entry] == 0) continue;
            const std::vector<int>& own = angle_steps[static_cast<std::size_t>(directions.slot[entry])];
            steps_of[p].insert(steps_of[p].end(), own.begin(), own.end());
        }
        if (last - first < 2) continue;
        std::sort(steps_of[p].begin(), steps_of[p].end());
        steps_of[p].erase(std::unique(steps_of[p].begin(), steps_of[p].end()), steps_of[p].end());
    }
    const auto of = [&](int p) -> const std::vector<int>& { return steps_of[static_cast<std::size_t>(p)]; };
    std::vector<int> all;
    for (int p = 0; p < static_cast<int>(directions.size()); ++p) {
        if (of(p).empty()) continue;  // the state does not depend on it: its row stays 0
        position.push_back(p);
        all.insert(all.end(), of(p).begin(), of(p).end());
    }
    if (position.empty()) return;
    std::stable_sort(position.begin(), position.end(),
                     [&](int a, int b) { return of(a).front() < of(b).front(); });
    // The median makes the ways to the middle shortest. Steps skip amplitudes in which qubits that are
    // still |0> are 1; tangents that are pulled back may have such amplitudes, so they stop where no
    // further qubit is reached.
    std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2), all.end());
    middle = all[all.size() / 2];
    const Mask idle = plan.steps.back().idle;
    while (plan.steps[static_cast<std::size_t>(middle)].idle != idle) ++middle;
    if (frame == Frame::end) middle = static_cast<int>(plan.steps.size());
    for (std::size_t first = 0; first < position.size(); first += lanes) {
        Group group;
        for (std::size_t i = first; i < std::min(position.size(), first + lanes); ++i) {
            for (const int s : of(position[i])) (s < middle ? group.early : group.late).push_back(s);
        }
        for (std::vector<int>* steps : {&group.early, &group.late}) {
            std::sort(steps->begin(), steps->end());
            steps->erase(std::unique(steps->begin(), steps->end()), steps->end());
        }
        groups.push_back(std::move(group));
    }
    split(program, of);
    narrow = {program.qubits(), std::min(max_lane_bits, program.qubits())};
    for (const Step& step : plan.steps) narrow_geometries.push_back(geometry(step, narrow));
}

template <typename Steps>
void Schedule::split(const Program& program, const Steps& steps_of) {
    if (program.qubits() <= max_lane_bits) return;
    // Nanoseconds, as measured. Eight tangents in the lanes walk from the first step of any of them, and each
    // of their steps adds to all of them.
    const auto rows = std::ldexp(1.0, program.qubits());
    const double wide = 1.6 * rows + 20, single = 1.6 * rows / lanes + 20;
    const auto way = [&](int first, int last) {
        const int early = first < middle ? middle - first : 0;
        const int late = last >= middle ? last + 1 - middle : 0;
        return static_cast<double>(early + late);
    };
    double together = 0, apart = 0;
    for (const Group& group : groups) {
        const std::size_t steps = group.early.size() + group.late.size();
        const int first = group.early.empty() ? middle : group.early.front();
        const int last = group.late.empty() ? middle - 1 : group.late.back();
        together += wide * (way(first, last) + static_cast<double>(steps));
    }
    for (const int p : position) {
        const std::vector<int>& steps = steps_of(p);
        const double own = way(steps.front(), steps.back()) + static_cast<double>(steps.size());
        apart += single * own + 3 * rows;  // and the way into the panel
    }
    if (together <= apart) return;
    singles.resize(groups.size() * lanes);
    for (std::size_t i = 0; i < position.size(); ++i) {
        for (const int s : steps_of(position[i])) {
            (s < middle ? singles[i].early : singles[i].late).push_back(s);
        }
    }
}

void scatter(const Schedule& schedule, std::size_t row, std::size_t first, std::size_t columns,
             const double* sums, std::size_t k, double* matrix) {
    for (std::size_t c = 0; c < columns; ++c) {
        for (std::size_t i = 0; i < gram_doubles; ++i) {
            const std::size_t p = row * lanes + i / lanes;
            const std::size_t q = (first + c) * lanes + i % lanes;
            if (p >= schedule.position.size() || q > p) continue;
            const auto a = static_cast<std::size_t>(schedule.position[p]);
            const auto b = static_cast<std::size_t>(schedule.position[q]);
            matrix[a * k + b] += sums[c * gram_doubles + i];
            if (a != b) matrix[b * k + a] = matrix[a * k + b];
        }
    }
}

}  // namespace fubini
