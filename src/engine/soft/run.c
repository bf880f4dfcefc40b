/*
 * Running a vCPU: events between blocks, blocks, faults, halting. vCPU's thread.
 */
#include "engine/soft/soft_int.h"

#include <setjmp.h>
#include <sys/prctl.h>

/* One stretch of blocks. X86_FAULT: cpu->fault is to be delivered. */
static enum x86_result run_blocks(struct engine_vcpu *vcpu)
{
    jmp_buf here;
    bool step;

    vcpu->cpu.unwind = &here;
    vcpu->current = NULL;
    if (setjmp(here)) {
        unsigned done = block_completed(vcpu);
        soft_count(&vcpu->instructions, done);
        return X86_FAULT;
    }
    step = block_loop(vcpu);
    vcpu->cpu.unwind = NULL;
    if (!step)
        return X86_OK;
    soft_count(&vcpu->instructions, 1);
    return x86_step(&vcpu->cpu);
}

static enum x86_result run_one(struct engine_vcpu *vcpu)
{
    vcpu->cpu.end_block = false;
    soft_count(&vcpu->instructions, 1);
    return x86_step(&vcpu->cpu);
}

/* A fault may leave a LOCK operation in the middle of its exclusive section. */
static void leave_sections(struct engine_vcpu *vcpu)
{
    while (vcpu->exclusive_depth)
        soft_x86_ops.exclusive_end(vcpu);
}

bool soft_run_slice(struct engine_vcpu *vcpu)
{
    struct x86_cpu *cpu = &vcpu->cpu;
    enum x86_result result = cpu->debug_active ? run_one(vcpu) : run_blocks(vcpu);

    if (likely(result == X86_OK))
        return true;
    leave_sections(vcpu);
    cpu->end_block = false;
    if (result == X86_FAULT) {
        cpu->s.interrupt_shadow = cpu->s.shadow_is_mov_ss = false;
        result = x86_deliver(cpu, &cpu->fault);
        cpu->end_block = false;
    }
    return result == X86_OK;
}

static void shut_down(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    vcpu->cpu.s.mp_state = X86_MP_SHUTDOWN;
    exit->kind = VM_EXIT_SHUTDOWN;
}

/* False: stop, exit is filled in. */
static bool take_attention(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    struct engine_vm *vm = vcpu->vm;

    atomic_store(&vcpu->attention, 0);
    if (exclusive_wanted(&vm->exclusive)) {
        exclusive_leave(&vm->exclusive, &vcpu->member);
        exclusive_enter(&vm->exclusive, &vcpu->member);
    }
    soft_take_posts(vcpu);
    if (unlikely(lockstep_failed(vcpu->lockstep, exit)))
        return false;
    if (unlikely(atomic_load(&vcpu->kicked)) && atomic_exchange(&vcpu->kicked, false)) {
        exit->kind = VM_EXIT_INTERRUPTED;
        soft_wake(vcpu); /* the next run looks at the rest */
        return false;
    }
    soft_look_at_tsc(vcpu);
    if (!soft_take_events(vcpu)) {
        shut_down(vcpu, exit);
        return false;
    }
    soft_set_alarm(vcpu);
    return true;
}

static bool is_waiting(const struct engine_vcpu *vcpu)
{
    return vcpu->cpu.s.mp_state != X86_MP_RUNNABLE;
}

static void loop(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    atomic_store(&vcpu->timer_due, true);
    atomic_store(&vcpu->attention, 1); /* whatever came while outside */
    for (;;) {
        if (atomic_load_explicit(&vcpu->attention, memory_order_acquire)) {
            if (!take_attention(vcpu, exit))
                return;
        }
        if (unlikely(is_waiting(vcpu))) {
            soft_count(&vcpu->exits[VM_EXIT_HLT], 1);
            soft_wait(vcpu);
            continue;
        }
        if (!soft_run_slice(vcpu)) {
            shut_down(vcpu, exit);
            return;
        }
    }
}

/* The thread halts for as long as the guest says: the host's default is 50 microseconds more. */
static void prepare_thread(struct engine_vcpu *vcpu)
{
    if (vcpu->thread_prepared && pthread_equal(vcpu->thread, pthread_self()))
        return;
    vcpu->thread = pthread_self();
    vcpu->thread_prepared = true;
    prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
}

void soft_run(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    struct engine_vm *vm = vcpu->vm;

    prepare_thread(vcpu);
    if (vcpu->cpu.s.mp_state == X86_MP_SHUTDOWN) {
        /* Only an INIT or a reset by the machine ends it. */
        exit->kind = VM_EXIT_SHUTDOWN;
    } else {
        exclusive_enter(&vm->exclusive, &vcpu->member);
        loop(vcpu, exit);
        soft_timer_set(&vm->timer, vcpu->index, SOFT_TIMER_NEVER);
        exclusive_leave(&vm->exclusive, &vcpu->member);
    }
    soft_count(&vcpu->exits[exit->kind], 1);
}
