/*
 * Fuzz target: configuration space by ports and by ECAM, BARs that move, MSI-X tables.
 *
 * The input says which functions decode memory at first, and then is a row of accesses. At last
 * each device's state must survive being saved and loaded.
 */
#include "pc.h"

#include "device/pci/pci_defs.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    pc_quiet();
    return 0;
}

static unsigned a_slot(uint8_t choice)
{
    static const uint8_t slots[] = {0, PC_SLOT_RNG, PC_SLOT_CONSOLE, PC_SLOT_NET, PC_SLOT_DISK, 31};
    return choice < 0xe0 ? slots[choice % ARRAY_COUNT(slots)] : choice & 31;
}

static void write_bar(struct pc *pc, struct fuzz_input *in)
{
    static const uint64_t places[] = {MACHINE_PCI32_BASE,  0,          MACHINE_ECAM_BASE,
                                      MACHINE_IOAPIC_BASE, 0xfffff000, 0x1000000000,
                                      0xffffffffffffc000,  PC_RAM};
    unsigned slot = a_slot(fuzz_u8(in));
    uint8_t choice = fuzz_u8(in);
    uint64_t place = places[choice & 7] + ((uint64_t)fuzz_u8(in) << 12);
    uint64_t at = pc_ecam(slot, PCI_BAR0 + (choice >> 3) % 6 * 4);

    bus_write(pc_machine(pc)->mmio, at, 4, place & 0xffffffff);
    if (choice & 0x80)
        bus_write(pc_machine(pc)->mmio, at + 4, 4, place >> 32);
}

/* CF8 as a BIOS would, and CFC. */
static void by_ports(struct pc *pc, struct fuzz_input *in)
{
    unsigned slot = a_slot(fuzz_u8(in));
    uint8_t offset = fuzz_u8(in);

    bus_write(pc_machine(pc)->pio, 0xcf8, 4, 0x80000000 | slot << 11 | (offset & 0xfc));
    pc_port(pc, in, (uint16_t)(0xcfc + (offset & 3)));
}

static void one(struct pc *pc, struct fuzz_input *in)
{
    unsigned slot, index;

    switch (fuzz_u8(in) % 10) {
    case 0:
    case 1:
        by_ports(pc, in);
        break;
    case 2:
        pc_port(pc, in, (uint16_t)(0xcf8 + fuzz_u8(in) % 8));
        break;
    case 3:
    case 4:
        slot = a_slot(fuzz_u8(in));
        pc_access(pc, in, pc_ecam(slot, fuzz_u8(in)));
        break;
    case 5:
        pc_access(pc, in, MACHINE_ECAM_BASE + fuzz_u32(in) % MACHINE_ECAM_SIZE);
        break;
    case 6:
        write_bar(pc, in);
        break;
    case 7:
    case 8:
        slot = a_slot(fuzz_u8(in));
        index = fuzz_u8(in) & 6;
        pc_access(pc, in, pc_bar(pc, slot, index) + (fuzz_u16(in) & 0x3fff));
        break;
    default:
        pc_enable(pc, a_slot(fuzz_u8(in)));
        pc_run_loop(pc);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct pc *pc = pc_create(PC_PCI | PC_VIRTIO);
    uint8_t enabled = fuzz_u8(&in);

    for (unsigned i = 0; i < 6; i++) {
        if (!(enabled >> i & 1))
            pc_enable(pc, a_slot((uint8_t)i));
    }
    for (unsigned i = 0; i < 300 && in.left; i++)
        one(pc, &in);
    pc_check_states(pc);
    pc_destroy(pc);
    return 0;
}
