/*
 * Fuzz target: saved states of a whole machine: fields changed, cut, doubled, exchanged, or all of
 * it from the input.
 *
 * What was loaded must be able to run on: registers are accessed, time passes; and to be saved.
 */
#include "pc.h"

#include "device/virtio/virtio_pci.h"
#include "vm/state.h"

#define FIELDS_MAX 4096

struct field {
    size_t start, name_length, length; /* start: of its header; length: of its data */
};

/* What a fresh machine saves. */
static struct state_writer fresh;
static struct field fields[FIELDS_MAX];
static unsigned field_count;

/* The vCPUs lie where the leak detector looks; what the fresh state is made of stays. */
static void find_fields(void)
{
    struct state_reader r;
    size_t offset = 0;

    while (state_next_section(fresh.data, fresh.size, &offset, &r) > 0) {
        for (size_t at = 0; at + 6 <= r.size && field_count < FIELDS_MAX;) {
            struct field *f = &fields[field_count++];
            f->start = (size_t)(r.body - fresh.data) + at;
            f->name_length = r.body[at + 1];
            f->length = load_le32(r.body + at + 2);
            at += 6 + f->name_length + f->length;
        }
    }
    fuzz_must(field_count > 50 && field_count < FIELDS_MAX);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct err err = {{0}};
    struct pc *pc;

    (void)argc, (void)argv;
    pc_quiet();
    pc = pc_create(PC_ALL);
    fuzz_must(machine_start(pc_machine(pc), &err) == 0);
    state_writer_init(&fresh);
    fuzz_must(machine_save(pc_machine(pc), &fresh, &err) == 0);
    pc_destroy(pc);
    find_fields();
    return 0;
}

/* --- changes; none changes a length, so that the others stay where they are --- */

static void change(uint8_t *state, struct fuzz_input *in)
{
    const struct field *f = &fields[fuzz_u16(in) % field_count];
    uint8_t *data = state + f->start + 6 + f->name_length;
    uint8_t how = fuzz_u8(in);
    size_t at = f->length > 255 ? fuzz_u16(in) % f->length
                : f->length     ? fuzz_u8(in) % f->length
                                : 0;

    switch (how % 6) {
    case 0:
    case 1:
        fuzz_take(in, data, MIN(f->length, 8));
        break;
    case 2:
        fuzz_take(in, data + at, MIN(f->length - at, 4));
        break;
    case 3:
        memset(data, how & 0x80 ? 0xff : 0, f->length);
        break;
    case 4:
        if (f->length)
            data[at] ^= (uint8_t)(1u << (how >> 5));
        break;
    default:
        /* The header: a field of another length, name or flag. */
        state[f->start + how / 6 % 8] = fuzz_u8(in);
        break;
    }
}

/* --- running on --- */

static void use(struct pc *pc, struct fuzz_input *in)
{
    static const uint16_t ports[] = {0x20, 0x40,  0x42,  0x43,  0x60,  0x61,  0x64,  0x70,
                                     0x71, 0x3f8, 0x3fa, 0x3fd, 0x510, 0x511, 0x600, 0x608};
    static const uint8_t slots[] = {PC_SLOT_RNG, PC_SLOT_CONSOLE, PC_SLOT_NET, PC_SLOT_DISK};
    struct machine *machine = pc_machine(pc);

    for (unsigned i = 0; i < ARRAY_COUNT(ports); i++) {
        (void)bus_read(machine->pio, ports[i], 1);
        bus_write(machine->pio, ports[i], 1, fuzz_u8(in));
    }
    for (unsigned i = 0; i < ARRAY_COUNT(slots); i++) {
        pc_enable(pc, slots[i]);
        uint64_t bar = pc_bar(pc, slots[i], VIRTIO_PCI_BAR);
        for (unsigned k = 0; k < 0x40; k += 2)
            (void)bus_read(machine->mmio, bar + k, 2);
        for (unsigned queue = 0; queue < 3; queue++)
            bus_write(machine->mmio, bar + VIRTIO_PCI_NOTIFY + queue * VIRTIO_PCI_NOTIFY_FACTOR, 2,
                      queue);
    }
    pc_receive(pc, (const uint8_t *)"a frame of some length", 22);
    pc_type(pc, (const uint8_t *)"text", 4);
    pc_advance(pc, 100000000);
    pc_run_loop(pc);
}

static void check_saving(struct pc *pc)
{
    struct state_writer w;
    struct err err = {{0}};

    state_writer_init(&w);
    if (machine_save(pc_machine(pc), &w, &err))
        fuzz_fail("a machine that was loaded cannot be saved: %s", err.text);
    state_writer_free(&w);
}

static void load(const uint8_t *state, size_t size, struct fuzz_input *in)
{
    struct pc *pc = pc_create(PC_ALL);
    struct err err = {{0}};

    if (machine_load(pc_machine(pc), state, size, &err)) {
        if (!err.text[0])
            fuzz_fail("a refusal without a sentence");
    } else {
        check_saving(pc);
        use(pc, in);
        pc_check_states(pc);
    }
    pc_destroy(pc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    uint8_t choice = fuzz_u8(&in);

    if (choice == 0xff) {
        load(in.data, in.left, &(struct fuzz_input) {0});
        return 0;
    }
    uint8_t *state = malloc(fresh.size);
    fuzz_must(state);
    memcpy(state, fresh.data, fresh.size);
    for (unsigned i = 0; i < choice % 16; i++)
        change(state, &in);
    size_t cut = choice & 0x80 ? fuzz_u16(&in) % fresh.size : fresh.size;
    load(state, cut, &in);
    free(state);
    return 0;
}
