/* What the files of the machine share: run control and requests. */
#ifndef PARAT_VM_MACHINE_INT_H
#define PARAT_VM_MACHINE_INT_H

#include <stdatomic.h>

#include "vm/machine.h"

enum machine_request { REQUEST_NONE, REQUEST_RESET, REQUEST_END };

enum run_target { RUN_TARGET_PAUSED, RUN_TARGET_RUNNING, RUN_TARGET_EXIT };

/* A message that knows its machine. */
struct machine_message {
    struct loop_message message;
    struct machine *machine;
};

struct machine_int {
    struct mem_observer observer;

    /* Run control. `lock` is a leaf: nothing else is taken under it. */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* target, or running_count became 0 */
    enum run_target target;
    unsigned running_count; /* vCPU threads inside the run loop */
    unsigned pause_depth;   /* loop thread */
    atomic_bool hold;       /* a request waits for the loop: vCPUs go no further */

    _Atomic int request; /* enum machine_request; the first wins */
    enum machine_end request_end;
    struct machine_message message;
    enum machine_end end;
    uint32_t debug_exit_value;
    struct err host_error;

    bool started; /* vCPUs exist and have a state */
    _Atomic uint64_t first_run_ns;
    uint64_t resets;
};

/* vcpu.c: the vCPU threads. Loop thread. */
int vcpus_create(struct machine *machine, struct err *err);
int vcpus_start_threads(struct machine *machine, struct err *err);
void vcpus_join_threads(struct machine *machine);
void vcpus_destroy(struct machine *machine);
void vcpus_kick_all(struct machine *machine); /* any thread */

#endif
