/*
 * A whole q35-1 machine for the fuzz targets of devices: engine fake, a clock that moves only when
 * told, all devices, and backends in memory. The input is a sequence of operations: what a guest, a
 * network, a user and time can do.
 */
#ifndef PARAT_TESTS_FUZZ_PC_H
#define PARAT_TESTS_FUZZ_PC_H

#include "fuzz.h"

#include "vm/machine.h"

#define PC_RAM 0x400000u

/* PCI slots of its devices. */
enum { PC_SLOT_RNG = 1, PC_SLOT_CONSOLE = 2, PC_SLOT_NET = 3, PC_SLOT_DISK = 11 };

struct pc;

enum pc_part { PC_LEGACY = 1, PC_PCI = 2, PC_VIRTIO = 4, PC_ALL = 7 };
/* The guest's mistakes are not logged. Once, before all. */
void pc_quiet(void);
/* parts: enum pc_part. */
struct pc *pc_create(unsigned parts);
void pc_destroy(struct pc *pc);
struct machine *pc_machine(struct pc *pc);

/* --- what happens to it --- */

void pc_run_loop(struct pc *pc);
void pc_advance(struct pc *pc, uint64_t ns);
/* A frame for the card, text for the consoles; the disk completes what it holds. */
void pc_receive(struct pc *pc, const uint8_t *frame, size_t length);
void pc_type(struct pc *pc, const uint8_t *text, size_t length);
void pc_complete(struct pc *pc);
/* What the backends do from now on: bits of enum pc_mood. */
enum pc_mood {
    PC_DISK_HOLDS = 1,
    PC_DISK_FAILS = 2,
    PC_NET_FULL = 4,
    PC_NET_FAILS = 8,
    PC_CONSOLE_FULL = 16
};
void pc_set_mood(struct pc *pc, unsigned mood);

/* One access to the ports or the memory of devices. */
void pc_port(struct pc *pc, struct fuzz_input *in, uint16_t port);
void pc_access(struct pc *pc, struct fuzz_input *in, uint64_t address);

/* Address of a function's registers in ECAM; of a BAR as it stands, 0: none. */
uint64_t pc_ecam(unsigned slot, unsigned offset);
uint64_t pc_bar(struct pc *pc, unsigned slot, unsigned index);
/* Memory decoding and bus mastering on. */
void pc_enable(struct pc *pc, unsigned slot);

/* Each device's state is saved, loaded and saved again: must be the same. */
void pc_check_states(struct pc *pc);

#endif
