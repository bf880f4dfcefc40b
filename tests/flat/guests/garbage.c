/*
 * Writes garbage to every device: ports, PCI configuration space, the virtio registers, IOAPIC,
 * local APIC, and rings full of noise. Not one of the guests with an expected text: tests/system
 * runs it with seeds (on the command line) and asks only that parat ends in an orderly way and
 * stays small.
 *
 * Left out is what ends the VM by design: resets, power-off, the debug-exit port, INIT to itself.
 */
#include "flat.h"

#define ROUNDS 60000

extern uint64_t multiboot_info;
static uint64_t seed;

/* SplitMix64. */
static uint64_t next_random(void)
{
    uint64_t z = seed += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* The last number on the multiboot command line. */
static uint64_t seed_from_command_line(void)
{
    const uint32_t *info = (const uint32_t *)multiboot_info;
    uint64_t value = 1;
    if (!(info[0] & 4))
        return value;
    for (const char *s = (const char *)(uint64_t)info[4]; *s; s++)
        if (*s >= '0' && *s <= '9')
            value = (s[-1] >= '0' && s[-1] <= '9' ? value * 10 : 0) + (uint64_t)(*s - '0');
    return value;
}

static bool port_ends_the_vm(uint16_t port)
{
    /* debug-exit, port 92, i8042, reset control, ACPI registers; COM1 is the console */
    return (port >= 0xf0 && port <= 0xf7) || (port >= 0x8f && port <= 0x92) ||
           (port >= 0x5d && port <= 0x64) || (port >= 0xcf5 && port <= 0xcff) ||
           (port >= 0x5f0 && port <= 0x6ff) || (port >= 0x3f0 && port <= 0x3ff);
}

/* Ports where something is, more often than not. */
static uint16_t some_port(void)
{
    static const uint16_t bases[] = {0x20,  0xa0,  0x40,  0x43,  0x70, 0x71,
                                     0x510, 0x511, 0x514, 0x4d0, 0x61, 0x80};
    uint64_t r = next_random();
    uint16_t port = r & 1 ? bases[(r >> 8) % (sizeof bases / sizeof bases[0])] + (r >> 4 & 3)
                          : (uint16_t)(r >> 16);
    return port_ends_the_vm(port) ? 0x80 : port;
}

static void garbage_to_ports(void)
{
    uint64_t r = next_random();
    uint16_t port = some_port();
    switch (r % 6) {
    case 0:
        out8(port, (uint8_t)(r >> 8));
        break;
    case 1:
        out16(port, (uint16_t)(r >> 8));
        break;
    case 2:
        out32(port, (uint32_t)(r >> 8));
        break;
    case 3:
        (void)in8(port);
        break;
    case 4:
        (void)in16(port);
        break;
    default:
        (void)in32(port);
        break;
    }
}

static void poke(uint64_t address)
{
    uint64_t r = next_random();
    switch (r % 5) {
    case 0:
        *(volatile uint8_t *)address = (uint8_t)(r >> 8);
        break;
    case 1:
        *(volatile uint16_t *)address = (uint16_t)(r >> 8);
        break;
    case 2:
        *(volatile uint32_t *)address = (uint32_t)(r >> 8);
        break;
    case 3:
        *(volatile uint64_t *)address = r;
        break;
    default:
        (void)*(volatile uint32_t *)address;
        break;
    }
}

/* Configuration space, through both ways in; now and then the devices are enabled again. */
static void garbage_to_pci(void)
{
    uint64_t r = next_random();
    uint32_t slot = r >> 8 & 31, offset = r >> 16 & 0xfc;
    if (r % 16 == 0) {
        for (uint32_t s = 0; s < 32; s++)
            *(volatile uint16_t *)(0xb0000000ul + (s << 15) + 4) = 6;
        return;
    }
    if (r & 1) {
        out32(0xcf8, 0x80000000 | slot << 11 | offset);
        out32(0xcfc, (uint32_t)(r >> 24));
    } else {
        poke(0xb0000000ul + (slot << 15) + (r >> 16 & 0xfff));
    }
}

static void garbage_to_chips(void)
{
    uint64_t r = next_random();
    if (r & 1) {
        poke(0xfec00000 + (r >> 8 & 0x7f));
        return;
    }
    uint64_t offset = r >> 8 & 0xff0;
    if (offset != 0x300) /* ICR: INIT would end the test */
        poke(0xfee00000 + offset);
}

/* The memory where BARs usually lie, and a device brought up with rings made of noise. */
static void garbage_to_virtio(void)
{
    uint64_t r = next_random(), bar = 0xc0000000 + (r >> 8 & 0x1f) * 0x4000;
    if (r % 64) {
        poke(bar + (r >> 16 & 0x3fff));
        return;
    }
    static uint8_t rings[65536] __attribute__((aligned(4096)));
    for (unsigned i = 0; i < sizeof rings; i += 8)
        *(uint64_t *)(rings + i) = next_random() & (r & 64 ? ~0ull : 0x0000ffff001fffff);
    volatile uint8_t *common = (uint8_t *)bar;
    common[0x14] = 0;
    common[0x14] = 3;
    *(volatile uint32_t *)(common + 8) = 1;
    *(volatile uint32_t *)(common + 12) = 1;
    common[0x14] = 11;
    for (uint16_t q = 0; q < 3; q++) {
        *(volatile uint16_t *)(common + 0x16) = q;
        for (unsigned i = 0; i < 3; i++) {
            *(volatile uint32_t *)(common + 0x20 + i * 8) =
                (uint32_t)(uint64_t)rings + (uint32_t)(next_random() & 0xfff0);
            *(volatile uint32_t *)(common + 0x24 + i * 8) = 0;
        }
        *(volatile uint16_t *)(common + 0x1c) = 1;
    }
    common[0x14] = 15;
    for (unsigned i = 0; i < 0x4000; i += 4)
        if (i >= 0x40 && next_random() % 8 == 0)
            *(volatile uint32_t *)(common + i) = (uint32_t)(next_random() & 3);
}

static void one_round(void *argument)
{
    (void)argument;
    switch (next_random() % 4) {
    case 0:
        garbage_to_ports();
        break;
    case 1:
        garbage_to_pci();
        break;
    case 2:
        garbage_to_chips();
        break;
    default:
        garbage_to_virtio();
        break;
    }
}

void guest_main(void)
{
    seed = seed_from_command_line();
    print("seed %lu\n", seed);
    for (unsigned i = 0; i < ROUNDS; i++)
        flat_try(one_round, NULL); /* moved registers may make an access fault */
    print("still here\n");
}
