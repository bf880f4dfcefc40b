/*
 * What is wrong with a host's KVM, and what its user can do about it: sentences from facts. Pure.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/kvm/kvm_int.h"

/* A kernel-mode instruction that takes this many times a user-mode one's time is emulated. */
#define SLOW_RATIO 10.0
/* ... and this long at least: below it the times are too small to tell apart. */
#define SLOW_NS 20.0
/* One that takes this long is emulated whatever user mode takes. */
#define EMULATED_NS 100.0

static bool unusable(struct engine_probe *out, const char *reason, const char *remedy)
{
    out->verdict = ENGINE_UNUSABLE;
    snprintf(out->reason, sizeof out->reason, "%s", reason);
    snprintf(out->remedy, sizeof out->remedy, "%s", remedy);
    return true;
}

/* There is no device node, or nothing behind it. */
static bool no_device(const struct kvm_host *host, struct engine_probe *out)
{
    bool capable = host->cpu_vmx || host->cpu_svm;
    if (!capable && host->is_vm)
        return unusable(out,
                        "because this host is itself a VM, whose hypervisor offers no nested "
                        "virtualization (there is no /dev/kvm)",
                        "turn on nested virtualization for this VM at its hypervisor, or take a "
                        "machine of another type at the cloud provider");
    if (!capable)
        return unusable(out, "because the CPU has neither VT-x nor AMD-V (there is no /dev/kvm)",
                        "some firmware hides them: look for virtualization, VT-x or SVM in its "
                        "setup");
    if (!host->kernel_has_it)
        return unusable(out,
                        "because the firmware has disabled the CPU's virtualization (there is no "
                        "/dev/kvm)",
                        "enable virtualization (VT-x, SVM) in the firmware's setup and start the "
                        "machine again");
    return unusable(out, "because there is no /dev/kvm, though the CPU supports virtualization",
                    host->cpu_svm ? "as root: modprobe kvm_amd; in a container: start it with "
                                    "--device /dev/kvm"
                                  : "as root: modprobe kvm_intel; in a container: start it with "
                                    "--device /dev/kvm");
}

static bool no_vm(const struct kvm_host *host, struct engine_probe *out)
{
    char reason[200];
    if (host->create_error == EBUSY)
        return unusable(out, "because another hypervisor holds the CPU's virtualization",
                        "end the other hypervisor (VirtualBox, VMware) and unload its modules");
    snprintf(reason, sizeof reason, "because the kernel makes no VM: %s",
             strerror(host->create_error));
    return unusable(out, reason, "the kernel's log may tell more: dmesg | grep -i kvm");
}

bool kvm_diagnose(const struct kvm_host *host, struct engine_probe *out)
{
    char reason[200];
    switch (host->open_error) {
    case 0:
        break;
    case EACCES:
    case EPERM:
        return unusable(out, "because this user may not open /dev/kvm",
                        "as root: adduser USER kvm; then log in again");
    case ENOENT:
    case ENXIO:
    case ENODEV:
        return no_device(host, out);
    default:
        snprintf(reason, sizeof reason, "because /dev/kvm cannot be opened: %s",
                 strerror(host->open_error));
        return unusable(out, reason, "");
    }
    if (host->missing) {
        snprintf(reason, sizeof reason, "because this kernel's KVM has no %s", host->missing);
        return unusable(out, reason, "use a newer kernel: Linux 5.16 and later have it");
    }
    return host->create_error ? no_vm(host, out) : false;
}

void kvm_judge_speed(struct engine_probe *out)
{
    bool slow =
        out->kernel_ns >= SLOW_NS && out->kernel_ns >= MIN(EMULATED_NS, out->user_ns * SLOW_RATIO);
    out->verdict = slow ? ENGINE_SLOW : ENGINE_USABLE;
    out->rank = slow ? 0 : 2;
    if (!slow)
        return;
    snprintf(out->reason, sizeof out->reason,
             "because this host's KVM emulates kernel-mode instructions (%.0f ns each, %.1f ns in "
             "user mode): a stock kernel hardly boots",
             out->kernel_ns, out->user_ns);
    snprintf(out->remedy, sizeof out->remedy,
             "use engine soft here, as auto does; for KVM take a host that gives its VMs real "
             "nested virtualization, or one that is no VM");
}
