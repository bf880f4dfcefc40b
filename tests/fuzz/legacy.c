/*
 * Fuzz target: ports and registers of the PC's old devices (8259, 8254, RTC, 16550, i8042, fw_cfg,
 * ACPI, IOAPIC) and of a local APIC.
 *
 * The input is a row of operations. Then each device's state, and the APIC's, must survive being
 * saved and loaded.
 */
#include "pc.h"

#include "vm/irq.h"
#include "vm/platform.h"
#include "x86/lapic.h"

#define TSC_HZ 1000000000u

/* The fastest timers run out a million times in a second. */
#define TIME_MAX 1000000000u

struct world {
    struct pc *pc;
    struct x86_lapic apic;
};

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    pc_quiet();
    return 0;
}

/* --- the local APIC's surroundings --- */

static uint64_t now_ns(void *context)
{
    return vm_clock_ns(pc_machine(((struct world *)context)->pc)->clock);
}

static uint64_t tsc_at(void *context, uint64_t ns)
{
    (void)context;
    return ns;
}

static void send(void *context, const struct x86_lapic_message *message)
{
    struct world *w = context;
    if (message->shorthand == X86_TO_SELF || message->shorthand == X86_TO_ALL ||
        x86_lapic_matches(&w->apic, message))
        (void)x86_lapic_accept(&w->apic, message);
}

static void eoi(void *context, uint8_t vector)
{
    struct machine *machine = pc_machine(((struct world *)context)->pc);
    machine->chip_eoi(machine->chip_eoi_context, vector);
}

static const struct x86_lapic_ops apic_ops = {
    .now_ns = now_ns, .tsc_at = tsc_at, .send = send, .eoi = eoi};

static void make_apic(struct world *w)
{
    struct x86_lapic_config config = {
        .ops = &apic_ops, .context = w, .tsc_hz = TSC_HZ, .has_x2apic = true, .has_deadline = true};
    struct x86_lapic_state state;

    x86_lapic_create(&w->apic, &config);
    x86_lapic_state_reset(&state, 0);
    x86_lapic_set_state(&w->apic, &state, 0xfee00000 | X86_APIC_BASE_ENABLE | X86_APIC_BASE_BSP, 0);
}

static void access_apic(struct world *w, struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    uint64_t value = 0;
    struct x86_lapic_message message;
    uint64_t mode = w->apic.base & (X86_APIC_BASE_ENABLE | X86_APIC_BASE_X2APIC);

    /* Its page is only there in xAPIC mode. */
    if ((how & 15) <= 4 && mode != X86_APIC_BASE_ENABLE)
        return;
    switch (how & 15) {
    case 0:
    case 1:
    case 2:
        x86_lapic_mmio_write(&w->apic, (fuzz_u8(in) & 0x3f) * 16u, 4, fuzz_u32(in));
        break;
    case 3:
        (void)x86_lapic_mmio_read(&w->apic, (fuzz_u8(in) & 0x3f) * 16u, 4);
        break;
    case 4:
        x86_lapic_mmio_write(&w->apic, fuzz_u16(in) & 0xff8, 1u << (how >> 6), fuzz_u64(in));
        break;
    case 5:
        (void)x86_lapic_msr_write(&w->apic, 0x800 + fuzz_u8(in), fuzz_u64(in));
        break;
    case 6:
        (void)x86_lapic_msr_read(&w->apic, 0x800 + fuzz_u8(in), &value);
        break;
    case 7:
        (void)x86_lapic_write_base(&w->apic, fuzz_u64(in), 40);
        break;
    case 8:
        x86_lapic_write_deadline(&w->apic, fuzz_u64(in));
        break;
    case 9:
        x86_lapic_write_cr8(&w->apic, how >> 4);
        break;
    case 10:
        x86_lapic_pulse_lint(&w->apic, how >> 7);
        break;
    case 11:
        x86_lapic_init(&w->apic);
        break;
    default:
        message = x86_lapic_decode_msi(fuzz_u32(in), fuzz_u32(in));
        if (x86_lapic_matches(&w->apic, &message))
            (void)x86_lapic_accept(&w->apic, &message);
        break;
    }
}

/* What the CPU does between two instructions. */
static void take_interrupt(struct world *w)
{
    x86_lapic_poll(&w->apic, x86_lapic_next_ns(&w->apic) <= now_ns(w));
    int vector = x86_lapic_pending(&w->apic);

    if (vector < 0)
        return;
    if (vector < 16 || vector > 255)
        fuzz_fail("the local APIC gives vector %d", vector);
    x86_lapic_acknowledge(&w->apic, (uint8_t)vector);
}

static void check_apic(struct world *w)
{
    struct x86_lapic_state a, b;
    uint64_t deadline = x86_lapic_read_deadline(&w->apic);

    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    x86_lapic_get_state(&w->apic, &a);
    x86_lapic_set_state(&w->apic, &a, w->apic.base, deadline);
    x86_lapic_get_state(&w->apic, &b);
    if (deadline != x86_lapic_read_deadline(&w->apic))
        fuzz_fail("the local APIC's deadline that was loaded is another one");
    for (size_t i = 0; i < sizeof a; i++) {
        if (((uint8_t *)&a)[i] != ((uint8_t *)&b)[i])
            fuzz_fail("the local APIC's state that was loaded is another one at byte %zu", i);
    }
}

/* --- ports --- */

static uint16_t a_port(uint8_t choice)
{
    static const uint16_t ports[] = {0x20,  0x21,  0xa0,  0xa1,  0x4d0, 0x4d1, 0x40,  0x41,
                                     0x42,  0x43,  0x60,  0x61,  0x64,  0x70,  0x71,  0x80,
                                     0x92,  0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe,
                                     0x3ff, 0x510, 0x511, 0x514, 0x518, 0xf4};

    if (choice < 128)
        return ports[choice % ARRAY_COUNT(ports)];
    return (uint16_t)(PLATFORM_PM_BASE + (choice & 0x3f));
}

static void move_line(struct world *w, struct fuzz_input *in)
{
    uint8_t choice = fuzz_u8(in);
    struct machine *machine = pc_machine(w->pc);

    if (choice & 0x40 && machine->chip_acknowledge)
        (void)machine->chip_acknowledge(machine->chip_acknowledge_context);
    if (choice & 0x20 && machine->power_button)
        machine->power_button(machine->power_button_context);
}

static void type(struct world *w, struct fuzz_input *in)
{
    uint8_t text[32];
    size_t length = fuzz_u8(in) % sizeof text;
    fuzz_take(in, text, length);
    pc_type(w->pc, text, length);
}

static void advance(struct world *w, uint64_t ns)
{
    if (now_ns(w) + ns <= TIME_MAX)
        pc_advance(w->pc, ns);
}

static void one(struct world *w, struct fuzz_input *in)
{
    switch (fuzz_u8(in) % 12) {
    case 0:
    case 1:
    case 2:
    case 3:
        pc_port(w->pc, in, a_port(fuzz_u8(in)));
        break;
    case 4:
        pc_port(w->pc, in, fuzz_u16(in));
        break;
    case 5:
        pc_access(w->pc, in, MACHINE_IOAPIC_BASE + (fuzz_u8(in) & 0x50));
        break;
    case 6:
    case 7:
        access_apic(w, in);
        break;
    case 8:
        advance(w, (uint64_t)fuzz_u16(in) << (fuzz_u8(in) % 14));
        break;
    case 9:
        move_line(w, in);
        pc_run_loop(w->pc);
        break;
    case 10:
        type(w, in);
        break;
    default:
        pc_set_mood(w->pc, fuzz_u8(in));
        break;
    }
    take_interrupt(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct world w = {.pc = pc_create(PC_LEGACY)};

    make_apic(&w);
    for (unsigned i = 0; i < 300 && in.left; i++)
        one(&w, &in);
    check_apic(&w);
    pc_check_states(w.pc);
    pc_destroy(w.pc);
    return 0;
}
