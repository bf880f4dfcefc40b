/*
 * The local APIC's timer: one-shot, periodic, TSC deadline. SDM vol. 3 section 11.5.4. Runs on the
 * owner's thread. Its input clock ticks once per nanosecond of VM time (1 GHz).
 */
#include "x86/lapic_int.h"

#include "base/clock.h"

enum { MODE_ONE_SHOT = 0, MODE_PERIODIC = 1, MODE_DEADLINE = 2 };

static unsigned mode_of(uint32_t lvt)
{
    return lvt >> 17 & 3;
}

static unsigned timer_mode(const struct x86_lapic *lapic)
{
    return mode_of(lapic->lvt[X86_LVT_TIMER]);
}

/* Figure 11-10: bits 3, 1, 0 of the divide register. */
static unsigned divisor(uint32_t divide)
{
    unsigned code = (divide & 3) | (divide >> 1 & 4);
    return code == 7 ? 1 : 2u << code;
}

static uint64_t now_ns(const struct x86_lapic *lapic)
{
    return lapic->config.ops->now_ns(lapic->config.context);
}

static uint64_t period_ns(const struct x86_lapic *lapic)
{
    return (uint64_t)lapic->timer_initial * divisor(lapic->timer_divide);
}

static void run_counter(struct x86_lapic *lapic)
{
    uint64_t now = now_ns(lapic), period = period_ns(lapic);

    if (now < lapic->timer_expiry_ns)
        return;
    if (timer_mode(lapic) == MODE_PERIODIC && period)
        lapic->timer_expiry_ns += ((now - lapic->timer_expiry_ns) / period + 1) * period;
    else
        lapic->timer_expiry_ns = UINT64_MAX;
    x86_lapic_raise_lvt(lapic, X86_LVT_TIMER);
}

static void raise_deadline(struct x86_lapic *lapic)
{
    lapic->tsc_deadline = 0;
    lapic->deadline_ns = UINT64_MAX;
    x86_lapic_raise_lvt(lapic, X86_LVT_TIMER);
}

void x86_lapic_timer_run(struct x86_lapic *lapic)
{
    if (lapic->timer_expiry_ns != UINT64_MAX)
        run_counter(lapic);
    if (lapic->deadline_ns != UINT64_MAX && now_ns(lapic) >= lapic->deadline_ns)
        raise_deadline(lapic);
}

/* Ticks to nanoseconds, rounded up, so that the deadline has passed then. Far away is never. */
static uint64_t ticks_to_ns(uint64_t ticks, uint64_t hz)
{
    if (likely(hz == NS_PER_S))
        return ticks;
    unsigned __int128 ns = ((unsigned __int128)ticks * NS_PER_S + hz - 1) / hz;
    return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

/* From tsc_deadline, not 0. True: it has passed. */
static bool derive_deadline(struct x86_lapic *lapic)
{
    uint64_t now = now_ns(lapic), left;
    uint64_t tsc = lapic->config.ops->tsc_at(lapic->config.context, now);

    if (tsc >= lapic->tsc_deadline) {
        lapic->deadline_ns = now;
        return true;
    }
    left = ticks_to_ns(lapic->tsc_deadline - tsc, lapic->config.tsc_hz);
    if (add_overflows(now, left, &lapic->deadline_ns))
        lapic->deadline_ns = UINT64_MAX;
    return false;
}

void x86_lapic_tsc_changed(struct x86_lapic *lapic)
{
    lapic->deadline_ns = UINT64_MAX;
    if (lapic->tsc_deadline)
        (void)derive_deadline(lapic);
}

uint64_t x86_lapic_next_ns(struct x86_lapic *lapic)
{
    uint32_t lvt = lapic->lvt[X86_LVT_TIMER];

    /* Masked, or not yet taken: nothing new will come of it. The count is kept when it is read. */
    if ((lvt & LVT_MASKED) || (lapic->irr[(lvt & 0xff) / 32] >> lvt % 32 & 1))
        return UINT64_MAX;
    return MIN(lapic->timer_expiry_ns, lapic->deadline_ns);
}

uint32_t x86_lapic_timer_current(struct x86_lapic *lapic)
{
    x86_lapic_timer_run(lapic);
    if (lapic->timer_expiry_ns == UINT64_MAX)
        return 0;
    uint64_t now = now_ns(lapic), ticks = divisor(lapic->timer_divide);
    uint64_t left = lapic->timer_expiry_ns > now ? lapic->timer_expiry_ns - now : 0;
    return (uint32_t)((left + ticks - 1) / ticks);
}

void x86_lapic_timer_write_initial(struct x86_lapic *lapic, uint32_t value)
{
    if (timer_mode(lapic) == MODE_DEADLINE)
        return; /* section 11.5.4.1 */
    lapic->timer_initial = value;
    lapic->timer_expiry_ns = value ? now_ns(lapic) + period_ns(lapic) : UINT64_MAX;
}

/* The count goes on from where it is, at the new speed. */
void x86_lapic_timer_write_divide(struct x86_lapic *lapic, uint32_t value)
{
    uint32_t left = x86_lapic_timer_current(lapic);

    lapic->timer_divide = value;
    if (lapic->timer_expiry_ns != UINT64_MAX)
        lapic->timer_expiry_ns = now_ns(lapic) + (uint64_t)left * divisor(value);
}

/* Section 11.5.4.1: going to or from deadline mode disarms the timer. */
void x86_lapic_timer_mode_changed(struct x86_lapic *lapic, uint32_t old)
{
    if ((mode_of(old) == MODE_DEADLINE) == (timer_mode(lapic) == MODE_DEADLINE))
        return;
    lapic->timer_expiry_ns = UINT64_MAX;
    lapic->timer_initial = 0;
    lapic->tsc_deadline = 0;
    lapic->deadline_ns = UINT64_MAX;
}

uint64_t x86_lapic_read_deadline(const struct x86_lapic *lapic)
{
    return lapic->tsc_deadline;
}

void x86_lapic_write_deadline(struct x86_lapic *lapic, uint64_t tsc)
{
    if (timer_mode(lapic) != MODE_DEADLINE)
        return;
    lapic->tsc_deadline = tsc;
    lapic->deadline_ns = UINT64_MAX;
    if (tsc && derive_deadline(lapic))
        raise_deadline(lapic);
}
