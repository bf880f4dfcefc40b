/* Engine kvm: vCPUs run by the host kernel's KVM, with the local APIC in the kernel. */
#ifndef PARAT_ENGINE_KVM_H
#define PARAT_ENGINE_KVM_H

#include "vm/engine.h"

extern const struct engine_ops engine_kvm;

#endif
