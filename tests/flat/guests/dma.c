/*
 * Code that a disk read replaces: a page that was just executed is overwritten by virtio-blk, and
 * the new code must run. The disk's sector i holds "mov $i, %eax; ret". virtio 1.2
 * sections 2.7, 4.1, 5.2.
 */
#include "flat.h"

#define SECTORS 200
#define BAR     0xc8000000u /* in the 32-bit PCI window; the machine put it elsewhere */

static uint32_t config_read(unsigned slot, unsigned offset)
{
    out32(0xcf8, 0x80000000 | slot << 11 | offset);
    return in32(0xcfc);
}

static void config_write(unsigned slot, unsigned offset, uint32_t value)
{
    out32(0xcf8, 0x80000000 | slot << 11 | offset);
    out32(0xcfc, value);
}

static volatile uint8_t *common, *notify;
static uint32_t notify_multiplier;

/* The capability list tells where the registers are in the BAR; section 4.1.4. */
static void find_registers(unsigned slot)
{
    unsigned bar = 6;
    for (unsigned at = config_read(slot, 0x34) & 0xfc; at; at = config_read(slot, at) >> 8 & 0xfc) {
        uint32_t head = config_read(slot, at);
        if ((head & 0xff) != 9)
            continue;
        unsigned type = head >> 24;
        bar = config_read(slot, at + 4) & 0xff;
        uint32_t offset = config_read(slot, at + 8);
        if (type == 1)
            common = (uint8_t *)(uint64_t)(BAR + offset);
        if (type == 2) {
            notify = (uint8_t *)(uint64_t)(BAR + offset);
            notify_multiplier = config_read(slot, at + 16);
        }
    }
    config_write(slot, 4, 0);
    config_write(slot, 0x10 + bar * 4, BAR);
    config_write(slot, 0x14 + bar * 4, 0);
    config_write(slot, 4, 6); /* memory, bus master */
}

#define REG8(o)  (*(volatile uint8_t *)(common + (o)))
#define REG16(o) (*(volatile uint16_t *)(common + (o)))
#define REG32(o) (*(volatile uint32_t *)(common + (o)))
#define REG64(o) (*(volatile uint64_t *)(common + (o)))

enum { QUEUE_SIZE = 4 };

static struct {
    struct {
        uint64_t address;
        uint32_t length;
        uint16_t flags, next;
    } descriptor[QUEUE_SIZE];
    volatile uint16_t available_flags, available_index, available[QUEUE_SIZE], unused;
    uint8_t pad[4096 - QUEUE_SIZE * 16 - 4 - QUEUE_SIZE * 2 - 2];
    volatile uint16_t used_flags, used_index;
    uint32_t used[QUEUE_SIZE * 2];
} queue __attribute__((aligned(4096)));

static bool start_device(void)
{
    REG8(0x14) = 0;
    while (REG8(0x14))
        pause();
    REG8(0x14) = 3; /* ACKNOWLEDGE, DRIVER */
    REG32(8) = 1;
    REG32(12) = 1; /* VIRTIO_F_VERSION_1 */
    REG32(8) = 0;
    REG32(12) = 0;
    REG8(0x14) = 11; /* FEATURES_OK */
    if (!(REG8(0x14) & 8))
        return false;
    REG16(0x16) = 0;
    REG16(0x18) = QUEUE_SIZE;
    REG32(0x20) = (uint32_t)(uint64_t)queue.descriptor;
    REG32(0x24) = 0;
    REG32(0x28) = (uint32_t)(uint64_t)&queue.available_flags;
    REG32(0x2c) = 0;
    REG32(0x30) = (uint32_t)(uint64_t)&queue.used_flags;
    REG32(0x34) = 0;
    REG16(0x1c) = 1;
    REG8(0x14) = 15; /* DRIVER_OK */
    notify += REG16(0x1e) * notify_multiplier;
    return true;
}

/* Reads one sector to the address and waits; true on success. */
static bool read_sector(uint64_t sector, void *to)
{
    static struct {
        uint32_t type, reserved;
        uint64_t sector;
    } request;
    static volatile uint8_t status;
    request.type = 0;
    request.sector = sector;
    status = 0xff;
    queue.descriptor[0].address = (uint64_t)&request;
    queue.descriptor[0].length = 16;
    queue.descriptor[0].flags = 1;
    queue.descriptor[0].next = 1;
    queue.descriptor[1].address = (uint64_t)to;
    queue.descriptor[1].length = 512;
    queue.descriptor[1].flags = 3;
    queue.descriptor[1].next = 2;
    queue.descriptor[2].address = (uint64_t)&status;
    queue.descriptor[2].length = 1;
    queue.descriptor[2].flags = 2;
    uint16_t before = queue.used_index;
    queue.available[queue.available_index % QUEUE_SIZE] = 0;
    asm volatile("" : : : "memory");
    queue.available_index++;
    asm volatile("mfence" : : : "memory");
    *(volatile uint16_t *)notify = 0;
    while (queue.used_index == before)
        pause();
    return status == 0;
}

void guest_main(void)
{
    static uint8_t code[4096] __attribute__((aligned(4096)));
    unsigned slot = 0;
    while (slot < 32 && config_read(slot, 0) != 0x10421af4)
        slot++;
    check(slot < 32, "a virtio disk is there");
    find_registers(slot);
    check(common && notify, "its registers were found");
    check(start_device(), "it takes the features");
    bool read = true, ran = true;
    for (uint32_t i = 0; i < SECTORS; i++) {
        read &= read_sector(i, code);
        ran &= ((uint32_t(*)(void))(uint64_t)code)() == i;
    }
    check(read, "every sector was read");
    check(ran, "code that a disk read replaced runs in its new form, 200 times");
}
