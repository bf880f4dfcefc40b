/*
 * The local APIC: modes, interrupt acceptance and priorities, registers. See lapic.h for threads;
 * the timer is in lapic_timer.c. SDM vol. 3 chapter 11; section numbers below are of that volume.
 */
#include "x86/lapic.h"

#include "x86/lapic_int.h"

#define BASE_FLAGS (X86_APIC_BASE_BSP | X86_APIC_BASE_X2APIC | X86_APIC_BASE_ENABLE)

#define SVR_ENABLE BIT(8)

/* ESR, section 11.5.3 */
#define ESR_SEND_ILLEGAL     BIT(5)
#define ESR_RECEIVE_ILLEGAL  BIT(6)
#define ESR_ILLEGAL_REGISTER BIT(7)

#define LVT_LEVEL     BIT(15)
#define LVT_READ_ONLY (BIT(12) | BIT(14)) /* delivery status, remote IRR: ignored, not reserved */

/* ICR, section 11.6.1 */
#define ICR_LOW_WRITABLE 0x000ccfffu
#define ICR_LOGICAL      BIT(11)
#define ICR_ASSERT       BIT(14)
#define ICR_LEVEL        BIT(15)

/* Writable bits of each LVT entry, figure 11-8. */
static const uint32_t lvt_writable[X86_LVT_COUNT] = {
    [X86_LVT_TIMER] = 0x000700ff, [X86_LVT_THERMAL] = 0x000107ff, [X86_LVT_PERF] = 0x000107ff,
    [X86_LVT_LINT0] = 0x0001a7ff, [X86_LVT_LINT1] = 0x0001a7ff,   [X86_LVT_ERROR] = 0x000100ff,
};

/* --- state --- */

void x86_lapic_state_reset(struct x86_lapic_state *state, uint32_t id)
{
    memset(state, 0, sizeof *state);
    state->id = id;
    state->dfr = UINT32_MAX;
    state->svr = 0xff;
    for (unsigned i = 0; i < ARRAY_COUNT(state->lvt); i++)
        state->lvt[i] = LVT_MASKED;
    state->timer_expiry_ns = UINT64_MAX;
}

void x86_lapic_create(struct x86_lapic *lapic, const struct x86_lapic_config *config)
{
    struct x86_lapic_state state;

    memset(lapic, 0, sizeof *lapic);
    lapic->config = *config;
    x86_lapic_state_reset(&state, config->id);
    x86_lapic_set_state(lapic, &state, X86_APIC_BASE_ADDRESS | X86_APIC_BASE_ENABLE, 0);
}

static uint32_t x2apic_ldr(uint32_t id)
{
    return id >> 4 << 16 | 1u << (id & 15);
}

/* What others read when they look for destinations. */
static void publish_mode(struct x86_lapic *lapic)
{
    bool x2apic = lapic->base & X86_APIC_BASE_X2APIC;
    if (x2apic)
        lapic->ldr = x2apic_ldr(lapic->id);
    lapic->x2apic = x2apic;
    lapic->software = lapic->svr & SVR_ENABLE;
    lapic->enabled = lapic->base & X86_APIC_BASE_ENABLE;
}

static uint32_t signals_of(const struct x86_lapic_state *state)
{
    return (state->nmi_pending ? X86_LAPIC_NMI : 0) | (state->init_pending ? X86_LAPIC_INIT : 0) |
           (state->sipi_pending ? X86_LAPIC_SIPI | (uint32_t)state->sipi_vector << 8 : 0);
}

/* Signals apart, because an INIT resets the registers and keeps what came after it. */
static void set_registers(struct x86_lapic *lapic, const struct x86_lapic_state *state)
{
    lapic->tpr = state->tpr & 0xff;
    lapic->svr = state->svr & 0x1ff;
    lapic->esr = state->esr;
    lapic->errors = lapic->errors_seen = state->esr_latched;
    lapic->icr = state->icr;
    for (unsigned i = 0; i < X86_LVT_COUNT; i++)
        lapic->lvt[i] = state->lvt[i] & lvt_writable[i];
    lapic->timer_initial = state->timer_initial;
    lapic->timer_divide = state->timer_divide;
    lapic->timer_expiry_ns = state->timer_expiry_ns;
    for (unsigned i = 0; i < 8; i++) {
        lapic->isr[i] = state->isr[i];
        lapic->irr[i] = state->irr[i];
        lapic->tmr[i] = state->tmr[i];
    }
    lapic->ldr = state->ldr;
    lapic->dfr = state->dfr;
    publish_mode(lapic);
}

void x86_lapic_set_state(struct x86_lapic *lapic, const struct x86_lapic_state *state,
                         uint64_t apic_base, uint64_t tsc_deadline)
{
    lapic->id = state->id;
    lapic->base = apic_base;
    lapic->tsc_deadline = tsc_deadline;
    x86_lapic_tsc_changed(lapic);
    lapic->signals = signals_of(state);
    set_registers(lapic, state);
}

void x86_lapic_get_state(struct x86_lapic *lapic, struct x86_lapic_state *out)
{
    uint32_t signals = lapic->signals;

    memset(out, 0, sizeof *out);
    *out = (struct x86_lapic_state) {.id = lapic->id,
                                     .tpr = lapic->tpr,
                                     .ldr = lapic->ldr,
                                     .dfr = lapic->dfr,
                                     .svr = lapic->svr,
                                     .esr = lapic->esr,
                                     .esr_latched = lapic->errors,
                                     .icr = lapic->icr,
                                     .timer_initial = lapic->timer_initial,
                                     .timer_divide = lapic->timer_divide,
                                     .timer_expiry_ns = lapic->timer_expiry_ns,
                                     .nmi_pending = signals & X86_LAPIC_NMI,
                                     .init_pending = signals & X86_LAPIC_INIT,
                                     .sipi_pending = signals & X86_LAPIC_SIPI,
                                     .sipi_vector = (uint8_t)(signals >> 8)};
    for (unsigned i = 0; i < X86_LVT_COUNT; i++)
        out->lvt[i] = lapic->lvt[i];
    out->lvt[X86_LVT_COUNT] = LVT_MASKED; /* CMCI */
    for (unsigned i = 0; i < 8; i++) {
        out->isr[i] = lapic->isr[i];
        out->irr[i] = lapic->irr[i];
        out->tmr[i] = lapic->tmr[i];
    }
}

void x86_lapic_init(struct x86_lapic *lapic)
{
    struct x86_lapic_state state;

    x86_lapic_state_reset(&state, lapic->id);
    lapic->tsc_deadline = 0;
    lapic->deadline_ns = UINT64_MAX;
    set_registers(lapic, &state);
}

/* Section 11.12.5, figure 11-27: the ways between disabled, xAPIC and x2APIC. */
bool x86_lapic_write_base(struct x86_lapic *lapic, uint64_t value, unsigned address_bits)
{
    uint64_t address = (BIT(address_bits) - 1) & ~0xfffull;
    uint64_t old = lapic->base;
    bool enable = value & X86_APIC_BASE_ENABLE, x2apic = value & X86_APIC_BASE_X2APIC;

    if (value & ~(address | BASE_FLAGS))
        return false;
    if (x2apic && (!lapic->config.has_x2apic || !enable || !(old & X86_APIC_BASE_ENABLE)))
        return false;
    if (!x2apic && enable && (old & X86_APIC_BASE_X2APIC))
        return false;
    lapic->base = (value & ~X86_APIC_BASE_BSP) | (old & X86_APIC_BASE_BSP);
    if (!enable && (old & X86_APIC_BASE_ENABLE))
        x86_lapic_init(lapic); /* section 11.4.3: what was set up is lost */
    publish_mode(lapic);
    return true;
}

/* --- vectors --- */

static int highest(const uint32_t word[8])
{
    for (int i = 7; i >= 0; i--) {
        if (word[i])
            return i * 32 + 31 - __builtin_clz(word[i]);
    }
    return -1;
}

static int highest_irr(struct x86_lapic *lapic)
{
    for (int i = 7; i >= 0; i--) {
        uint32_t word = atomic_load_explicit(&lapic->irr[i], memory_order_acquire);
        if (word)
            return i * 32 + 31 - __builtin_clz(word);
    }
    return -1;
}

/* Section 11.8.3.1 */
static uint32_t processor_priority(const struct x86_lapic *lapic)
{
    int in_service = highest(lapic->isr);
    uint32_t class = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;
    return (lapic->tpr & 0xf0) >= class ? lapic->tpr : class;
}

int x86_lapic_pending(struct x86_lapic *lapic)
{
    if (!lapic->enabled)
        return -1;
    int vector = highest_irr(lapic);
    return vector >= 0 && ((uint32_t)vector & 0xf0) > (processor_priority(lapic) & 0xf0) ? vector
                                                                                         : -1;
}

void x86_lapic_acknowledge(struct x86_lapic *lapic, uint8_t vector)
{
    if (vector == (uint8_t)lapic->lvt[X86_LVT_TIMER])
        x86_lapic_timer_run(lapic); /* what came due until now is this one */
    atomic_fetch_and(&lapic->irr[vector / 32], ~(1u << vector % 32));
    lapic->isr[vector / 32] |= 1u << vector % 32;
}

static void accept_vector(struct x86_lapic *lapic, uint8_t vector, bool level)
{
    uint32_t bit = 1u << vector % 32;
    bool was_level = atomic_load(&lapic->tmr[vector / 32]) & bit;
    if (level && !was_level)
        atomic_fetch_or(&lapic->tmr[vector / 32], bit);
    if (!level && was_level)
        atomic_fetch_and(&lapic->tmr[vector / 32], ~bit);
    atomic_fetch_or(&lapic->irr[vector / 32], bit);
}

/* Section 11.8.5: with broadcast to the IOAPICs of a level-triggered one. */
static void end_of_interrupt(struct x86_lapic *lapic)
{
    int vector = highest(lapic->isr);
    if (vector < 0)
        return;
    uint32_t bit = 1u << vector % 32;
    lapic->isr[vector / 32] &= ~bit;
    if (atomic_load(&lapic->tmr[vector / 32]) & bit)
        lapic->config.ops->eoi(lapic->config.context, (uint8_t)vector);
}

/* --- errors, section 11.5.3 --- */

/* The LVT's interrupt comes with the first error after a write to ESR. */
static void deliver_errors(struct x86_lapic *lapic)
{
    uint32_t errors = lapic->errors, lvt = lapic->lvt[X86_LVT_ERROR];
    if (errors && !lapic->errors_seen && !(lvt & LVT_MASKED)) {
        if ((lvt & 0xff) >= 16)
            accept_vector(lapic, (uint8_t)lvt, false);
        else
            atomic_fetch_or(&lapic->errors, (uint32_t)ESR_RECEIVE_ILLEGAL);
    }
    lapic->errors_seen = errors;
}

static void note_error(struct x86_lapic *lapic, uint32_t error)
{
    atomic_fetch_or(&lapic->errors, error);
    deliver_errors(lapic);
}

/* --- local sources --- */

void x86_lapic_raise_lvt(struct x86_lapic *lapic, enum x86_lapic_lvt index)
{
    uint32_t lvt = lapic->lvt[index];
    if (lvt & LVT_MASKED || !lapic->enabled)
        return;
    unsigned delivery = index == X86_LVT_TIMER ? X86_DELIVER_FIXED : lvt >> 8 & 7;
    switch (delivery) {
    case X86_DELIVER_FIXED:
        if ((lvt & 0xff) >= 16)
            accept_vector(lapic, (uint8_t)lvt, index >= X86_LVT_LINT0 && (lvt & LVT_LEVEL));
        else
            note_error(lapic, ESR_RECEIVE_ILLEGAL);
        break;
    case X86_DELIVER_NMI:
        atomic_fetch_or(&lapic->signals, X86_LAPIC_NMI);
        break;
    case X86_DELIVER_INIT:
        atomic_fetch_or(&lapic->signals, X86_LAPIC_INIT);
        break;
    default: /* SMI: there is no system management mode; ExtINT: x86_lapic_takes_extint */
        break;
    }
}

bool x86_lapic_takes_extint(const struct x86_lapic *lapic)
{
    uint32_t lvt = lapic->lvt[X86_LVT_LINT0];
    return !lapic->enabled || (!(lvt & LVT_MASKED) && (lvt >> 8 & 7) == X86_DELIVER_EXTINT);
}

void x86_lapic_pulse_lint(struct x86_lapic *lapic, unsigned pin)
{
    if (lapic->enabled)
        x86_lapic_raise_lvt(lapic, pin ? X86_LVT_LINT1 : X86_LVT_LINT0);
    else if (pin) /* section 11.4.3: LINT1 is the NMI pin then */
        atomic_fetch_or(&lapic->signals, X86_LAPIC_NMI);
}

void x86_lapic_poll(struct x86_lapic *lapic, bool timer)
{
    if (timer)
        x86_lapic_timer_run(lapic);
    if (unlikely(lapic->errors != lapic->errors_seen))
        deliver_errors(lapic);
}

/* --- messages --- */

static bool matches_logical(struct x86_lapic *lapic, uint32_t destination)
{
    uint32_t ldr = lapic->ldr;

    if (lapic->x2apic)
        return ldr >> 16 == destination >> 16 && (ldr & destination & 0xffff);
    ldr >>= 24;
    if (destination > 0xff)
        return false;
    if (lapic->dfr >> 28 == 0xf) /* flat */
        return ldr & destination;
    return ldr >> 4 == destination >> 4 && (ldr & destination & 0xf); /* cluster */
}

bool x86_lapic_matches(struct x86_lapic *lapic, const struct x86_lapic_message *message)
{
    if (!lapic->enabled)
        return false;
    if (message->destination == X86_LAPIC_BROADCAST)
        return true;
    return message->logical ? matches_logical(lapic, message->destination)
                            : lapic->id == message->destination;
}

static void accept_sipi(struct x86_lapic *lapic, uint8_t vector)
{
    uint32_t old = lapic->signals;
    do {
        if (old & X86_LAPIC_SIPI)
            return;
    } while (!atomic_compare_exchange_weak(&lapic->signals, &old,
                                           (old & 0xff) | X86_LAPIC_SIPI | (uint32_t)vector << 8));
}

static bool accept_fixed(struct x86_lapic *lapic, const struct x86_lapic_message *message)
{
    if (!lapic->software)
        return false; /* section 11.4.7.2 */
    if (message->vector < 16)
        atomic_fetch_or(&lapic->errors, (uint32_t)ESR_RECEIVE_ILLEGAL);
    else
        accept_vector(lapic, message->vector, message->level);
    return true;
}

bool x86_lapic_accept(struct x86_lapic *lapic, const struct x86_lapic_message *message)
{
    switch (message->delivery) {
    case X86_DELIVER_FIXED:
    case X86_DELIVER_LOWEST:
        return accept_fixed(lapic, message);
    case X86_DELIVER_NMI:
        atomic_fetch_or(&lapic->signals, X86_LAPIC_NMI);
        return true;
    case X86_DELIVER_INIT:
        atomic_fetch_or(&lapic->signals, X86_LAPIC_INIT);
        return true;
    case X86_DELIVER_SIPI:
        accept_sipi(lapic, message->vector);
        return true;
    default: /* SMI, reserved */
        return false;
    }
}

struct x86_lapic_message x86_lapic_decode_msi(uint64_t address, uint32_t data)
{
    uint32_t destination = (uint32_t)(address >> 12) & 0xff;
    return (struct x86_lapic_message) {.destination =
                                           destination == 0xff ? X86_LAPIC_BROADCAST : destination,
                                       .logical = address & BIT(2),
                                       .delivery = data >> 8 & 7,
                                       .vector = (uint8_t)data,
                                       .level = data & BIT(15)};
}

/* Which combinations exist: section 11.6.1, table 11-3. */
static bool icr_is_valid(const struct x86_lapic_message *m)
{
    switch (m->delivery) {
    case X86_DELIVER_FIXED:
        return true;
    case X86_DELIVER_LOWEST:
    case X86_DELIVER_NMI:
    case X86_DELIVER_INIT:
    case X86_DELIVER_SIPI:
        return m->shorthand == X86_TO_DESTINATION || m->shorthand == X86_TO_OTHERS;
    default:
        return false;
    }
}

static void send_ipi(struct x86_lapic *lapic, uint64_t icr)
{
    uint32_t destination = (uint32_t)(icr >> 32);
    if (!lapic->x2apic) {
        destination >>= 24;
        if (destination == 0xff)
            destination = X86_LAPIC_BROADCAST;
    }
    struct x86_lapic_message message = {.destination = destination,
                                        .logical = icr & ICR_LOGICAL,
                                        .delivery = icr >> 8 & 7,
                                        .vector = (uint8_t)icr,
                                        .shorthand = icr >> 18 & 3};
    bool has_vector =
        message.delivery == X86_DELIVER_FIXED || message.delivery == X86_DELIVER_LOWEST;
    bool init_deassert = message.delivery == X86_DELIVER_INIT && (icr & ICR_LEVEL) &&
                         !(icr & ICR_ASSERT); /* does nothing, section 11.6.1 */
    if (has_vector && message.vector < 16)
        note_error(lapic, ESR_SEND_ILLEGAL);
    else if (icr_is_valid(&message) && !init_deassert)
        lapic->config.ops->send(lapic->config.context, &message);
}

static void send_self_ipi(struct x86_lapic *lapic, uint8_t vector)
{
    send_ipi(lapic, (uint64_t)X86_TO_SELF << 18 | X86_DELIVER_FIXED << 8 | vector);
}

/* --- registers, table 11-1 and 11-6; `reg` is offset / 16 in both modes --- */

enum {
    REG_ID = 0x02,
    REG_VERSION = 0x03,
    REG_TPR = X86_APIC_TPR,
    REG_APR = 0x09,
    REG_PPR = 0x0a,
    REG_EOI = X86_APIC_EOI,
    REG_RRD = 0x0c,
    REG_LDR = 0x0d,
    REG_DFR = 0x0e,
    REG_SVR = 0x0f,
    REG_ISR = 0x10,
    REG_TMR = 0x18,
    REG_IRR = 0x20,
    REG_ESR = 0x28,
    REG_ICR = X86_APIC_ICR,
    REG_ICR_HIGH = X86_APIC_ICR_HIGH,
    REG_LVT = 0x32,
    REG_LVT_END = REG_LVT + X86_LVT_COUNT,
    REG_TIMER_INITIAL = 0x38,
    REG_TIMER_CURRENT = 0x39,
    REG_TIMER_DIVIDE = 0x3e,
    REG_SELF_IPI = X86_APIC_SELF_IPI,
};

#define VERSION (0x14u | (X86_LVT_COUNT - 1) << 16)

/* False: no such register (in this mode). */
static bool read_register(struct x86_lapic *lapic, unsigned reg, uint32_t *value)
{
    if (reg >= REG_ISR && reg < REG_ESR) {
        *value = reg < REG_TMR   ? lapic->isr[reg & 7]
                 : reg < REG_IRR ? lapic->tmr[reg & 7]
                                 : lapic->irr[reg & 7];
        return true;
    }
    if (reg >= REG_LVT && reg < REG_LVT_END) {
        *value = lapic->lvt[reg - REG_LVT];
        return true;
    }
    switch (reg) {
    case REG_ID:
        *value = lapic->x2apic ? lapic->id : lapic->id << 24;
        return true;
    case REG_VERSION:
        *value = VERSION;
        return true;
    case REG_TPR:
        *value = lapic->tpr;
        return true;
    case REG_PPR:
        *value = processor_priority(lapic);
        return true;
    case REG_LDR:
        *value = lapic->ldr;
        return true;
    case REG_SVR:
        *value = lapic->svr;
        return true;
    case REG_ESR:
        *value = lapic->esr;
        return true;
    case REG_ICR:
        *value = (uint32_t)lapic->icr;
        return true;
    case REG_TIMER_INITIAL:
        *value = lapic->timer_initial;
        return true;
    case REG_TIMER_CURRENT:
        *value = x86_lapic_timer_current(lapic);
        return true;
    case REG_TIMER_DIVIDE:
        *value = lapic->timer_divide;
        return true;
    default:
        return false;
    }
}

static void write_svr(struct x86_lapic *lapic, uint32_t value)
{
    lapic->svr = value & 0x1ff;
    lapic->software = value & SVR_ENABLE;
    if (value & SVR_ENABLE)
        return;
    for (unsigned i = 0; i < X86_LVT_COUNT; i++)
        lapic->lvt[i] |= LVT_MASKED; /* section 11.4.7.2 */
}

static void write_lvt(struct x86_lapic *lapic, unsigned index, uint32_t value)
{
    if (index == X86_LVT_TIMER)
        x86_lapic_timer_run(lapic); /* by what holds until now */
    uint32_t old = lapic->lvt[index];
    value &= lvt_writable[index];
    if (!(lapic->svr & SVR_ENABLE))
        value |= LVT_MASKED;
    lapic->lvt[index] = value;
    if (index == X86_LVT_TIMER)
        x86_lapic_timer_mode_changed(lapic, old);
}

/* Bits that may be set in a write by WRMSR; the rest is #GP. */
static uint32_t register_writable(const struct x86_lapic *lapic, unsigned reg)
{
    if (reg >= REG_LVT && reg < REG_LVT_END)
        return lvt_writable[reg - REG_LVT] | LVT_READ_ONLY; /* Linux writes them as ones */
    switch (reg) {
    case REG_TPR:
    case REG_SELF_IPI:
        return 0xff;
    case REG_EOI:
    case REG_ESR:
        return 0;
    case REG_SVR:
        return 0x1ff;
    case REG_ICR:
        return ICR_LOW_WRITABLE;
    case REG_TIMER_DIVIDE:
        return 0xb;
    default:
        return UINT32_MAX;
    }
}

/* False: no such register, or it cannot be written. */
static bool write_register(struct x86_lapic *lapic, unsigned reg, uint32_t value)
{
    if (reg >= REG_LVT && reg < REG_LVT_END) {
        write_lvt(lapic, reg - REG_LVT, value);
        return true;
    }
    switch (reg) {
    case REG_TPR:
        lapic->tpr = value & 0xff;
        return true;
    case REG_EOI:
        end_of_interrupt(lapic);
        return true;
    case REG_SVR:
        write_svr(lapic, value);
        return true;
    case REG_ESR:
        lapic->esr = atomic_exchange(&lapic->errors, 0);
        lapic->errors_seen = 0;
        return true;
    case REG_ICR:
        lapic->icr = (lapic->icr & ~0xffffffffull) | (value & ICR_LOW_WRITABLE);
        send_ipi(lapic, lapic->icr);
        return true;
    case REG_TIMER_INITIAL:
        x86_lapic_timer_write_initial(lapic, value);
        return true;
    case REG_TIMER_DIVIDE:
        x86_lapic_timer_write_divide(lapic, value & 0xb);
        return true;
    default:
        return false;
    }
}

uint64_t x86_lapic_mmio_read(struct x86_lapic *lapic, unsigned offset, unsigned size)
{
    uint32_t value = 0;
    unsigned reg = offset >> 4;

    if ((offset & 15) || size != 4)
        return 0;
    if (reg == REG_DFR)
        return lapic->dfr;
    if (reg == REG_ICR_HIGH)
        return lapic->icr >> 32;
    if (reg == REG_APR || reg == REG_RRD || reg == REG_EOI)
        return 0;
    if (!read_register(lapic, reg, &value))
        note_error(lapic, ESR_ILLEGAL_REGISTER);
    return value;
}

void x86_lapic_mmio_write(struct x86_lapic *lapic, unsigned offset, unsigned size, uint64_t value)
{
    uint32_t word = (uint32_t)value;

    if ((offset & 15) || size != 4)
        return;
    switch (offset >> 4) {
    case REG_LDR:
        lapic->ldr = word & 0xff000000;
        return;
    case REG_DFR:
        lapic->dfr = word | 0x0fffffff;
        return;
    case REG_ICR_HIGH:
        lapic->icr = (lapic->icr & 0xffffffff) | (uint64_t)(word & 0xff000000) << 32;
        return;
    case REG_ID: /* fixed here, as on newer CPUs */
    case REG_VERSION:
    case REG_APR:
    case REG_PPR:
    case REG_RRD:
    case REG_TIMER_CURRENT:
        return;
    default:
        break;
    }
    if (!write_register(lapic, offset >> 4, word))
        note_error(lapic, ESR_ILLEGAL_REGISTER);
}

/* Section 11.12.1.2 */
bool x86_lapic_msr_read(struct x86_lapic *lapic, uint32_t index, uint64_t *value)
{
    unsigned reg = index - X86_MSR_X2APIC;
    uint32_t word;

    if (!lapic->x2apic)
        return false;
    if (reg == REG_ICR) {
        *value = lapic->icr;
        return true;
    }
    if (!read_register(lapic, reg, &word))
        return false;
    *value = word;
    return true;
}

bool x86_lapic_msr_write(struct x86_lapic *lapic, uint32_t index, uint64_t value)
{
    unsigned reg = index - X86_MSR_X2APIC;

    if (!lapic->x2apic || ((uint32_t)value & ~register_writable(lapic, reg)))
        return false;
    if (reg == REG_ICR) {
        lapic->icr = value;
        send_ipi(lapic, value);
        return true;
    }
    if (value >> 32)
        return false;
    if (reg == REG_SELF_IPI) {
        send_self_ipi(lapic, (uint8_t)value);
        return true;
    }
    return write_register(lapic, reg, (uint32_t)value);
}

/* Section 11.8.6: CR8 is TPR bits 7-4. */
uint64_t x86_lapic_read_cr8(const struct x86_lapic *lapic)
{
    return lapic->tpr >> 4;
}

void x86_lapic_write_cr8(struct x86_lapic *lapic, uint64_t value)
{
    lapic->tpr = (uint32_t)(value & 0xf) << 4;
}
