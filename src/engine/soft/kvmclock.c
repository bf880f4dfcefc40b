/*
 * kvmclock: how the guest reads VM time and the wall clock from its RAM. The layout is KVM's
 * documented interface (Linux, Documentation/virt/kvm/x86/msr.rst). Only the stable bit is offered:
 * all vCPUs get the same line through (TSC, time), and a page changes only when the guest sets the
 * TSC. vCPU's thread.
 */
#include "base/clock.h"
#include "engine/soft/soft_int.h"
#include "vm/clock.h"

#define SYSTEM_TIME_ENABLE BIT(0)
#define FLAG_STABLE        1

struct time_page {
    uint32_t version; /* odd while it changes */
    uint32_t pad;
    uint64_t tsc_timestamp;
    uint64_t system_time; /* ns, when the TSC was tsc_timestamp */
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags;
    uint8_t pad2[2];
};
_Static_assert(sizeof(struct time_page) == 32, "as the guest sees it");

struct wall_page {
    uint32_t version, seconds, nanoseconds;
};

/* ns = ((ticks << shift) * mul) >> 32, with mul in its upper half for precision. */
static void tsc_scale(uint64_t hz, uint32_t *mul, int8_t *shift)
{
    int s = 0;
    while (hz < NS_PER_S && s < 31) {
        hz <<= 1;
        s++;
    }
    while (hz >= 2 * NS_PER_S && s > -31) {
        hz >>= 1;
        s--;
    }
    /* 10^9 <= hz < 2 * 10^9: the factor is in (0.5, 1]; 1 itself needs the next shift. */
    uint64_t factor = mul_div_u64(NS_PER_S, 1ull << 32, hz);
    if (factor >> 32) {
        factor >>= 1;
        s++;
    }
    *mul = (uint32_t)factor;
    *shift = (int8_t)s;
}

static void write_time(struct engine_vcpu *vcpu)
{
    uint64_t msr = vcpu->cpu.s.kvmclock_system_time, address = msr & ~SYSTEM_TIME_ENABLE;
    struct time_page page = {.version = 1,
                             .tsc_timestamp = vcpu->cpu.s.tsc_offset, /* at VM time 0 */
                             .system_time = 0,
                             .flags = FLAG_STABLE};

    if (!(msr & SYSTEM_TIME_ENABLE))
        return;
    tsc_scale(vcpu->vm->tsc_hz, &page.tsc_to_system_mul, &page.tsc_shift);
    /* Other vCPUs may read it: odd version first, even version last. */
    if (!soft_memory_write(vcpu, address, &page.version, sizeof page.version))
        return;
    atomic_thread_fence(memory_order_seq_cst);
    if (!soft_memory_write(vcpu, address + 4, &page.pad, sizeof page - 4))
        return;
    atomic_thread_fence(memory_order_seq_cst);
    page.version = 2;
    (void)soft_memory_write(vcpu, address, &page.version, sizeof page.version);
}

/* The wall clock at VM time 0. */
static void write_wall(struct engine_vcpu *vcpu, uint64_t address)
{
    uint64_t start = vcpu->vm->config.clock
                         ? vm_clock_wall_ns(vcpu->vm->config.clock) - soft_clock_ns(vcpu->vm)
                         : 0;
    struct wall_page page = {.version = 2,
                             .seconds = (uint32_t)(start / NS_PER_S),
                             .nanoseconds = (uint32_t)(start % NS_PER_S)};
    (void)soft_memory_write(vcpu, address, &page, sizeof page);
}

bool soft_kvmclock_msr_write(struct engine_vcpu *vcpu, uint32_t index, uint64_t value)
{
    switch (index) {
    case X86_MSR_KVM_SYSTEM_TIME:
    case X86_MSR_KVM_SYSTEM_TIME_OLD:
        vcpu->cpu.s.kvmclock_system_time = value;
        write_time(vcpu);
        return true;
    case X86_MSR_KVM_WALL_CLOCK:
    case X86_MSR_KVM_WALL_CLOCK_OLD:
        vcpu->cpu.s.kvmclock_wall_clock = value;
        write_wall(vcpu, value);
        return true;
    default:
        return false;
    }
}

void soft_look_at_tsc(struct engine_vcpu *vcpu)
{
    if (likely(vcpu->offset_seen == vcpu->cpu.s.tsc_offset))
        return;
    vcpu->offset_seen = vcpu->cpu.s.tsc_offset;
    write_time(vcpu);
    x86_lapic_tsc_changed(&vcpu->lapic);
    atomic_store(&vcpu->timer_due, true); /* may have passed now */
}
