/*
 * Real-time clock (Motorola MC146818A data sheet) with the CMOS RAM of a PC. Time of day is the
 * host's wall clock (UTC) plus what the guest set; periodic interrupts follow VM time.
 *
 * Registers are served on vCPU threads, the timer on the loop thread; the device's lock guards all.
 * Flags of register C are computed when somebody looks; the timer runs only while an interrupt is
 * enabled whose flag is clear, so an idle clock costs nothing.
 */
#include "device/legacy/rtc.h"

#include <errno.h>

#include "base/clock.h"
#include "device/legacy/legacy_io.h"
#include "device/legacy/rtc_time.h"
#include "vm/irq.h"
#include "vm/machine.h"
#include "vm/platform.h"
#include "vm/state.h"

#define PORT_INDEX     0x70
#define LINE           8
#define CMOS_SIZE      128
#define UIP_NS         (244 * NS_PER_US) /* update in progress before each second */
#define CRYSTAL_HZ     32768
#define ALARM_LOOK_MAX 86400u /* seconds that are searched for a missed alarm */

enum {
    REG_SECONDS = 0,
    REG_SECONDS_ALARM = 1,
    REG_MINUTES = 2,
    REG_MINUTES_ALARM = 3,
    REG_HOURS = 4,
    REG_HOURS_ALARM = 5,
    REG_YEAR = 9,
    REG_A = 10,
    REG_B = 11,
    REG_C = 12,
    REG_D = 13,
    CMOS_EQUIPMENT = 0x14,
    CMOS_BASE_KIB = 0x15,
    CMOS_EXTENDED_KIB = 0x17,
    CMOS_EXTENDED_KIB_2 = 0x30,
    CMOS_CENTURY = PLATFORM_CMOS_CENTURY,
    CMOS_ABOVE_16M = 0x34, /* in 64 KiB */
    CMOS_ABOVE_4G = 0x5b,  /* 3 bytes, in 64 KiB */
    CMOS_CPUS = 0x5f,      /* count - 1, for firmware */
};

#define A_UIP     0x80
#define A_DIVIDER 0x70
#define A_RUNNING 0x20
#define A_RATE    0x0f
#define B_SET     0x80
#define B_PIE     0x40
#define B_AIE     0x20
#define B_UIE     0x10
#define C_IRQF    0x80
#define C_PF      0x40
#define C_AF      0x20
#define C_UF      0x10
#define C_FLAGS   (C_PF | C_AF | C_UF) /* at the same bits as B's enables */
#define D_VRT     0x80

struct rtc {
    struct device device;
    struct irq_source irq;
    struct vm_timer timer;
    uint8_t index;
    uint8_t cmos[CMOS_SIZE]; /* the time registers count only while B.SET stops the clock */
    int64_t offset_s;        /* guest's time of day - host's */
    uint64_t seen_second;    /* up to here update and alarm flags are computed */
    uint64_t seen_period;    /* and periodic flags up to here */
};

/* --- time --- */

static uint64_t wall_ns(const struct rtc *rtc)
{
    return vm_clock_wall_ns(rtc->device.machine->clock);
}

static uint64_t wall_second(const struct rtc *rtc)
{
    return wall_ns(rtc) / NS_PER_S;
}

static bool is_running(const struct rtc *rtc)
{
    return !(rtc->cmos[REG_B] & B_SET) && (rtc->cmos[REG_A] & A_DIVIDER) == A_RUNNING;
}

static void current_time(const struct rtc *rtc, uint64_t host_second, struct rtc_time *out)
{
    rtc_time_from_unix((int64_t)host_second + rtc->offset_s, out);
}

/* Ticks of the 32,768 Hz crystal in one period; 0: no periodic interrupt. */
static unsigned period_ticks(const struct rtc *rtc)
{
    unsigned rate = rtc->cmos[REG_A] & A_RATE;
    if (rate == 0 || (rtc->cmos[REG_A] & A_DIVIDER) != A_RUNNING)
        return 0;
    return rate < 3 ? 1u << (rate + 6) : 1u << (rate - 1); /* 1 and 2 are 256 and 128 Hz */
}

static uint64_t period_number(const struct rtc *rtc)
{
    unsigned ticks = period_ticks(rtc);
    uint64_t now = vm_clock_ns(rtc->device.machine->clock);
    return ticks ? mul_div_u64(now, CRYSTAL_HZ, NS_PER_S) / ticks : 0;
}

/* Writes the time of day into the registers, in the form that B asks for. */
static void store_time(struct rtc *rtc)
{
    struct rtc_time t;
    current_time(rtc, wall_second(rtc), &t);
    rtc_time_to_registers(&t, rtc->cmos[REG_B], rtc->cmos, &rtc->cmos[CMOS_CENTURY]);
}

/* The registers are the time of day from now on. */
static void take_time(struct rtc *rtc)
{
    struct rtc_time t;
    rtc_time_from_registers(&t, rtc->cmos[REG_B], rtc->cmos, rtc->cmos[CMOS_CENTURY]);
    rtc->offset_s = rtc_time_to_unix(&t) - (int64_t)wall_second(rtc);
}

/* --- flags and interrupts --- */

static bool alarm_matches(const struct rtc *rtc, uint64_t host_second)
{
    static const uint8_t pairs[3][2] = {{REG_SECONDS, REG_SECONDS_ALARM},
                                        {REG_MINUTES, REG_MINUTES_ALARM},
                                        {REG_HOURS, REG_HOURS_ALARM}};
    struct rtc_time t;
    uint8_t registers[10], century;
    current_time(rtc, host_second, &t);
    rtc_time_to_registers(&t, rtc->cmos[REG_B], registers, &century);
    for (unsigned i = 0; i < 3; i++) {
        uint8_t alarm = rtc->cmos[pairs[i][1]];
        if (alarm < 0xc0 && alarm != registers[pairs[i][0]]) /* 0xc0 and up: any */
            return false;
    }
    return true;
}

/* Sets the flags of what has happened since the last look. */
static void look(struct rtc *rtc)
{
    uint64_t second = wall_second(rtc), period = period_number(rtc);
    if (is_running(rtc) && second > rtc->seen_second) {
        rtc->cmos[REG_C] |= C_UF;
        uint64_t from = MAX(rtc->seen_second + 1, second - MIN(second, ALARM_LOOK_MAX));
        for (uint64_t s = from; s <= second && !(rtc->cmos[REG_C] & C_AF); s++)
            if (alarm_matches(rtc, s))
                rtc->cmos[REG_C] |= C_AF;
    }
    rtc->seen_second = second;
    if (period > rtc->seen_period)
        rtc->cmos[REG_C] |= C_PF;
    rtc->seen_period = period;
}

static void arm(struct rtc *rtc)
{
    uint8_t wanted = rtc->cmos[REG_B] & ~rtc->cmos[REG_C] & C_FLAGS;
    uint64_t now = vm_clock_ns(rtc->device.machine->clock), deadline = UINT64_MAX;
    unsigned ticks = period_ticks(rtc);
    if ((wanted & C_PF) && ticks)
        deadline = mul_div_u64((rtc->seen_period + 1) * ticks, NS_PER_S, CRYSTAL_HZ) + 1;
    if ((wanted & (C_AF | C_UF)) && is_running(rtc))
        deadline = MIN(deadline, now + NS_PER_S - wall_ns(rtc) % NS_PER_S);
    if (deadline == UINT64_MAX)
        vm_timer_cancel(&rtc->timer);
    else
        vm_timer_arm(&rtc->timer, MAX(deadline, now + 1));
}

static void update(struct rtc *rtc)
{
    look(rtc);
    bool active = rtc->cmos[REG_B] & rtc->cmos[REG_C] & C_FLAGS;
    rtc->cmos[REG_C] = (rtc->cmos[REG_C] & C_FLAGS) | (active ? C_IRQF : 0);
    irq_source_set(&rtc->irq, active);
    arm(rtc);
}

static void timer_fired(struct vm_timer *timer)
{
    struct rtc *rtc = container_of(timer, struct rtc, timer);
    pthread_mutex_lock(&rtc->device.lock);
    update(rtc);
    pthread_mutex_unlock(&rtc->device.lock);
}

/* --- registers --- */

static bool is_time_register(unsigned reg)
{
    return (reg <= REG_YEAR && reg != REG_SECONDS_ALARM && reg != REG_MINUTES_ALARM &&
            reg != REG_HOURS_ALARM) ||
           reg == CMOS_CENTURY;
}

static uint8_t read_a(const struct rtc *rtc)
{
    bool updating = is_running(rtc) && wall_ns(rtc) % NS_PER_S >= NS_PER_S - UIP_NS;
    return rtc->cmos[REG_A] | (updating ? A_UIP : 0);
}

static uint8_t read_c(struct rtc *rtc)
{
    update(rtc);
    uint8_t value = rtc->cmos[REG_C];
    rtc->cmos[REG_C] = 0;
    update(rtc);
    return value;
}

static uint8_t read_register(struct rtc *rtc, unsigned reg)
{
    if (reg == REG_A)
        return read_a(rtc);
    if (reg == REG_C)
        return read_c(rtc);
    if (is_time_register(reg) && is_running(rtc))
        store_time(rtc);
    return rtc->cmos[reg];
}

static void write_time(struct rtc *rtc, unsigned reg, uint8_t value)
{
    bool running = is_running(rtc);
    if (running)
        store_time(rtc);
    rtc->cmos[reg] = value;
    if (running)
        take_time(rtc);
}

/* Stopping the clock freezes the registers, starting it takes them. */
static void write_control(struct rtc *rtc, unsigned reg, uint8_t value)
{
    bool was_running = is_running(rtc);
    look(rtc);
    if (was_running)
        store_time(rtc);
    if (reg == REG_B && (value & B_SET))
        value &= (uint8_t)~B_UIE;
    rtc->cmos[reg] = reg == REG_A ? value & (uint8_t)~A_UIP : value;
    if (!was_running && is_running(rtc))
        take_time(rtc);
    rtc->seen_second = wall_second(rtc);
    rtc->seen_period = period_number(rtc);
    update(rtc);
}

static void write_register(struct rtc *rtc, unsigned reg, uint8_t value)
{
    if (reg == REG_A || reg == REG_B)
        write_control(rtc, reg, value);
    else if (is_time_register(reg))
        write_time(rtc, reg, value);
    else if (reg != REG_C && reg != REG_D)
        rtc->cmos[reg] = value;
    if (reg < REG_A)
        update(rtc);
}

static uint64_t rtc_read(void *context, uint64_t offset, unsigned size)
{
    struct rtc *rtc = context;
    if (offset == 0)
        return size_mask(size); /* the index cannot be read */
    return read_register(rtc, rtc->index);
}

/* Bit 7 of the index masks the NMI, of which this machine has no source. */
static void rtc_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct rtc *rtc = context;
    if (offset == 0)
        rtc->index = value & (CMOS_SIZE - 1);
    if (offset == 1)
        write_register(rtc, rtc->index, (uint8_t)value);
    else if (size > 1)
        write_register(rtc, rtc->index, (uint8_t)(value >> 8));
}

static const struct bus_ops rtc_ops = {rtc_read, rtc_write};
static const struct legacy_range rtc_range = {PORT_INDEX, 2, &rtc_ops};

/* --- the device --- */

/* The memory sizes that firmware and old systems look up here. */
static void fill_cmos(struct rtc *rtc)
{
    uint64_t size = rtc->device.machine->config.ram_size;
    uint64_t low = MIN(size, MACHINE_LOW_RAM_MAX), high = size - low;
    uint64_t extended = low > BIT(20) ? MIN((low - BIT(20)) / 1024, 0xffff) : 0;
    uint64_t above_16m = low > 16 * BIT(20) ? MIN((low - 16 * BIT(20)) / 65536, 0xffff) : 0;
    uint64_t above_4g = MIN(high / 65536, 0xffffff);
    uint8_t *cmos = rtc->cmos;
    cmos[CMOS_EQUIPMENT] = 0x02; /* a coprocessor, no floppy drive */
    store_le16(cmos + CMOS_BASE_KIB, 640);
    store_le16(cmos + CMOS_EXTENDED_KIB, (uint16_t)extended);
    store_le16(cmos + CMOS_EXTENDED_KIB_2, (uint16_t)extended);
    store_le16(cmos + CMOS_ABOVE_16M, (uint16_t)above_16m);
    store_le16(cmos + CMOS_ABOVE_4G, (uint16_t)above_4g);
    cmos[CMOS_ABOVE_4G + 2] = (uint8_t)(above_4g >> 16);
    cmos[CMOS_CPUS] = (uint8_t)(rtc->device.machine->config.vcpu_count - 1);
}

/* The battery keeps time and RAM; RESET# clears the interrupt enables and flags. */
static void rtc_reset(struct device *device)
{
    struct rtc *rtc = container_of(device, struct rtc, device);
    rtc->index = 0;
    rtc->cmos[REG_B] &= (uint8_t) ~(B_PIE | B_AIE | B_UIE);
    rtc->cmos[REG_C] = 0;
    update(rtc);
}

static int rtc_create(struct device *device, const void *config, struct err *err)
{
    struct rtc *rtc = container_of(device, struct rtc, device);
    struct machine *machine = device->machine;
    (void)config;
    irq_source_init(&rtc->irq, machine->irq, LINE);
    vm_timer_init(&rtc->timer, machine->clock, timer_fired, rtc);
    rtc->cmos[REG_A] = 0x26; /* 32,768 Hz crystal, 1,024 Hz rate */
    rtc->cmos[REG_B] = 0x02; /* BCD, 24 hours */
    rtc->cmos[REG_D] = D_VRT;
    fill_cmos(rtc);
    rtc->seen_second = wall_second(rtc);
    return legacy_io_add(device, machine->pio, &rtc_range, 1, true, err);
}

static void rtc_destroy(struct device *device)
{
    struct rtc *rtc = container_of(device, struct rtc, device);
    vm_timer_cancel(&rtc->timer);
    legacy_io_remove(device->machine->pio, &rtc_range, 1);
}

static void rtc_save(struct device *device, struct state_writer *w)
{
    struct rtc *rtc = container_of(device, struct rtc, device);
    state_put_field(w, rtc, index);
    state_put_field(w, rtc, cmos);
    state_put_field(w, rtc, offset_s);
    state_put_field(w, rtc, seen_second);
    state_put_field(w, rtc, seen_period);
}

static int rtc_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct rtc *rtc = container_of(device, struct rtc, device);
    (void)err;
    state_get_field(r, rtc, index);
    state_get_field(r, rtc, cmos);
    state_get_field(r, rtc, offset_s);
    state_get_field(r, rtc, seen_second);
    state_get_field(r, rtc, seen_period);
    rtc->index &= CMOS_SIZE - 1;
    rtc->offset_s = MIN(MAX(rtc->offset_s, -RTC_TIME_UNIX_MAX), RTC_TIME_UNIX_MAX);
    irq_source_set(&rtc->irq, rtc->cmos[REG_C] & C_IRQF);
    arm(rtc);
    return 0;
}

const struct device_class rtc_class = {
    .name = "rtc",
    .size = sizeof(struct rtc),
    .create = rtc_create,
    .reset = rtc_reset,
    .save = rtc_save,
    .load = rtc_load,
    .destroy = rtc_destroy,
};
