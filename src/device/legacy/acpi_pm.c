/*
 * ACPI fixed hardware (ACPI 6.4 section 4.8; ICH9 data sheet, section 13.8.3).
 *
 * Registers are served on vCPU threads, the timer and the power button on the loop thread; the
 * device's lock guards all. The machine is always in ACPI mode: SCI_EN is set and stays set, and
 * the FADT names no SMI command port.
 */
#include "device/legacy/acpi_pm.h"

#include <errno.h>

#include "base/clock.h"
#include "device/legacy/legacy_io.h"
#include "vm/irq.h"
#include "vm/machine.h"
#include "vm/platform.h"
#include "vm/state.h"

#define TIMER_HZ   3579545ull
#define TIMER_BITS 24
#define TIMER_HALF BIT(TIMER_BITS - 1) /* ticks between changes of the top bit */

#define PM1_TMR      BIT(0)
#define PM1_GBL      BIT(5)
#define PM1_PWRBTN   BIT(8)
#define PM1_STS_BITS 0x8d31 /* what can be cleared: TMR BM GBL PWRBTN SLPBTN RTC WAK */
#define PM1_EN_BITS  0x0721
#define CNT_SCI_EN   BIT(0)
#define CNT_BITS     0x1c03 /* SLP_TYP, BM_RLD, SCI_EN */
#define CNT_SLP_TYP  10
#define CNT_SLP_EN   BIT(13)

struct acpi_pm {
    struct device device;
    struct irq_source sci;
    struct vm_timer timer;
    uint16_t pm1_status, pm1_enable, pm1_control;
    uint16_t gpe_status, gpe_enable;
    uint64_t seen_half; /* changes of the timer's top bit that were accounted for */
};

static uint64_t ticks(const struct acpi_pm *pm)
{
    return mul_div_u64(vm_clock_ns(pm->device.machine->clock), TIMER_HZ, NS_PER_S);
}

/* Sets TMR_STS when the top bit has changed since the last look. */
static void look(struct acpi_pm *pm)
{
    uint64_t half = ticks(pm) / TIMER_HALF;
    if (half > pm->seen_half)
        pm->pm1_status |= PM1_TMR;
    pm->seen_half = half;
}

/* The timer runs only while the guest wants its interrupt and has none pending. */
static void update(struct acpi_pm *pm)
{
    look(pm);
    bool active =
        (pm->pm1_status & pm->pm1_enable & PM1_EN_BITS) || (pm->gpe_status & pm->gpe_enable);
    irq_source_set(&pm->sci, active);
    if ((pm->pm1_enable & ~pm->pm1_status) & PM1_TMR)
        vm_timer_arm(&pm->timer,
                     mul_div_u64((pm->seen_half + 1) * TIMER_HALF, NS_PER_S, TIMER_HZ) + 1);
    else
        vm_timer_cancel(&pm->timer);
}

static void timer_fired(struct vm_timer *timer)
{
    struct acpi_pm *pm = container_of(timer, struct acpi_pm, timer);
    pthread_mutex_lock(&pm->device.lock);
    update(pm);
    pthread_mutex_unlock(&pm->device.lock);
}

static void power_button(void *context)
{
    struct acpi_pm *pm = context;
    pthread_mutex_lock(&pm->device.lock);
    pm->pm1_status |= PM1_PWRBTN;
    update(pm);
    pthread_mutex_unlock(&pm->device.lock);
}

/* --- registers: little-endian bytes of two 16-bit ones each --- */

/* Bytes [offset, offset + size) of two registers side by side. */
static uint64_t read_pair(uint16_t low, uint16_t high, uint64_t offset, unsigned size)
{
    uint32_t both = low | (uint32_t)high << 16;
    return both >> (8 * offset) & size_mask(size);
}

/* The value and the mask of a write to such a pair, moved to their places. */
static uint32_t placed(uint64_t value, uint64_t offset, unsigned size)
{
    return (uint32_t)((value & size_mask(size)) << (8 * offset));
}

static uint16_t merge(uint16_t old, uint32_t value, uint32_t mask, uint16_t writable)
{
    uint16_t m = (uint16_t)mask & writable;
    return (uint16_t)((old & ~m) | (value & m));
}

static uint64_t event_read(void *context, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = context;
    look(pm);
    return read_pair(pm->pm1_status, pm->pm1_enable, offset, size);
}

/* Status bits are cleared by writing ones. */
static void event_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *pm = context;
    uint32_t bits = placed(value, offset, size), mask = placed(~0ull, offset, size);
    look(pm);
    pm->pm1_status &= (uint16_t) ~(bits & PM1_STS_BITS);
    pm->pm1_enable = merge(pm->pm1_enable, bits >> 16, mask >> 16, PM1_EN_BITS);
    update(pm);
}

static uint64_t control_read(void *context, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = context;
    return read_pair(pm->pm1_control, 0, offset, size);
}

static void control_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *pm = context;
    uint32_t bits = placed(value, offset, size), mask = placed(~0ull, offset, size);
    pm->pm1_control = merge(pm->pm1_control, bits, mask, CNT_BITS) | CNT_SCI_EN;
    if (!(bits & CNT_SLP_EN))
        return;
    if ((pm->pm1_control >> CNT_SLP_TYP & 7) == PLATFORM_SLP_TYP_S5)
        machine_request_end(pm->device.machine, MACHINE_END_POWEROFF);
    else
        device_guest_error(&pm->device, "sleep state %u is not there",
                           pm->pm1_control >> CNT_SLP_TYP & 7);
}

static uint64_t timer_read(void *context, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = context;
    return (ticks(pm) & (BIT(TIMER_BITS) - 1)) >> (8 * offset) & size_mask(size);
}

static void timer_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    (void)context, (void)offset, (void)size, (void)value;
}

static uint64_t gpe_read(void *context, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = context;
    return read_pair(pm->gpe_status, pm->gpe_enable, offset, size);
}

static void gpe_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *pm = context;
    uint32_t bits = placed(value, offset, size), mask = placed(~0ull, offset, size);
    pm->gpe_status &= (uint16_t)~bits;
    pm->gpe_enable = merge(pm->gpe_enable, bits >> 16, mask >> 16, 0xffff);
    update(pm);
}

static const struct bus_ops event_ops = {event_read, event_write};
static const struct bus_ops control_ops = {control_read, control_write};
static const struct bus_ops timer_ops = {timer_read, timer_write};
static const struct bus_ops gpe_ops = {gpe_read, gpe_write};
static const struct legacy_range acpi_pm_ranges[] = {
    {PLATFORM_PM1_EVT, 4, &event_ops},
    {PLATFORM_PM1_CNT, 4, &control_ops},
    {PLATFORM_PM_TMR, 4, &timer_ops},
    {PLATFORM_GPE0, PLATFORM_GPE0_SIZE, &gpe_ops},
};

/* --- the device --- */

static void acpi_pm_reset(struct device *device)
{
    struct acpi_pm *pm = container_of(device, struct acpi_pm, device);
    pm->pm1_status = pm->pm1_enable = 0;
    pm->pm1_control = CNT_SCI_EN;
    pm->gpe_status = pm->gpe_enable = 0;
    pm->seen_half = ticks(pm) / TIMER_HALF;
    update(pm);
}

static int acpi_pm_create(struct device *device, const void *config, struct err *err)
{
    struct acpi_pm *pm = container_of(device, struct acpi_pm, device);
    struct machine *machine = device->machine;
    (void)config;
    irq_source_init(&pm->sci, machine->irq, PLATFORM_SCI_LINE);
    vm_timer_init(&pm->timer, machine->clock, timer_fired, pm);
    pm->pm1_control = CNT_SCI_EN;
    int error =
        legacy_io_add(device, machine->pio, acpi_pm_ranges, ARRAY_COUNT(acpi_pm_ranges), true, err);
    if (error)
        return error;
    machine->power_button = power_button;
    machine->power_button_context = pm;
    return 0;
}

static void acpi_pm_destroy(struct device *device)
{
    struct acpi_pm *pm = container_of(device, struct acpi_pm, device);
    device->machine->power_button = NULL;
    vm_timer_cancel(&pm->timer);
    legacy_io_remove(device->machine->pio, acpi_pm_ranges, ARRAY_COUNT(acpi_pm_ranges));
}

static void acpi_pm_save(struct device *device, struct state_writer *w)
{
    struct acpi_pm *pm = container_of(device, struct acpi_pm, device);
    look(pm); /* so that the saved state is that of the saved time */
    state_put_field(w, pm, pm1_status);
    state_put_field(w, pm, pm1_enable);
    state_put_field(w, pm, pm1_control);
    state_put_field(w, pm, gpe_status);
    state_put_field(w, pm, gpe_enable);
    state_put_field(w, pm, seen_half);
}

static int acpi_pm_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct acpi_pm *pm = container_of(device, struct acpi_pm, device);
    (void)err;
    state_get_field(r, pm, pm1_status);
    state_get_field(r, pm, pm1_enable);
    state_get_field(r, pm, pm1_control);
    state_get_field(r, pm, gpe_status);
    state_get_field(r, pm, gpe_enable);
    state_get_field(r, pm, seen_half);
    update(pm);
    return 0;
}

const struct device_class acpi_pm_class = {
    .name = "acpi-pm",
    .size = sizeof(struct acpi_pm),
    .create = acpi_pm_create,
    .reset = acpi_pm_reset,
    .save = acpi_pm_save,
    .load = acpi_pm_load,
    .destroy = acpi_pm_destroy,
};
