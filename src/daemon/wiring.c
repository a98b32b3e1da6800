/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/wiring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fmt.h"
#include "env/posix/posix.h"
#include "registry/sqlite/sqlite.h"
#include "store/local/local.h"
#include "vm/mock/mock.h"
#ifdef KLP_WITH_QEMU
#include "vm/qemu/qemu.h"
#endif

static void check_add(struct wiring *wiring, const char *name, const char *status,
                      const char *remedy, const char *format, ...) KLP_PRINTF(5, 6);

static void check_add(struct wiring *wiring, const char *name, const char *status,
                      const char *remedy, const char *format, ...)
{
    struct klp_check check = {.name = ""};
    klp_format(check.name, sizeof(check.name), "%s", name);
    klp_format(check.status, sizeof(check.status), "%s", status);
    klp_format(check.remedy, sizeof(check.remedy), "%s", remedy);
    va_list args;
    va_start(args, format);
    klp_vformat(check.detail, sizeof(check.detail), format, args);
    va_end(args);
    klp_json_append(wiring->checks, klp_rest_check_encode(&check));
}

/* kelpie-keeper: beside this program (a build tree), or where `make install` puts it. Owned; NULL =
 * not found. */
static char *helper_find(const char *name)
{
    char here[4096];
    ssize_t size = readlink("/proc/self/exe", here, sizeof(here) - 1);
    if (size <= 0)
        return NULL;
    here[size] = 0;
    char *slash = strrchr(here, '/');
    *slash = 0;
    const char *libexec = getenv("KELPIE_LIBEXEC");
    char *places[] = {klp_text("%s/%s", here, name),
                      klp_text("%s/../libexec/kelpie/%s", here, name),
                      libexec != NULL ? klp_text("%s/%s", libexec, name) : NULL};
    char *found = NULL;
    for (size_t i = 0; i < KLP_COUNT(places); i++) {
        if (found == NULL && places[i] != NULL && access(places[i], X_OK) == 0)
            found = KLP_TAKE(&places[i]);
        klp_mem_free(places[i]);
    }
    return found;
}

static bool mock_add(struct wiring *wiring, const char *keeper, struct kelpie_error **err)
{
    check_add(wiring, "backend", "warn", "kelpied --backend auto",
              "mock: chosen by name; its guests are pretended, for tests only");
    struct klp_mock_options options = {keeper, KLP_ARCH_NONE};
    KLP_CHECK(klp_vm_mock_create(wiring->env, wiring->vms_dir, &options,
                                 &wiring->factories[wiring->factory_count], err));
    wiring->factory_count++;
    return true;
}

#ifdef KLP_WITH_QEMU
static void kvm_check(struct wiring *wiring, const struct klp_qemu_probe *probe)
{
    if (!probe->kvm_present)
        check_add(wiring, "kvm", "warn", "run on a host with KVM",
                  "/dev/kvm is not there or may not be opened");
    else if (!probe->kvm_usable)
        check_add(wiring, "kvm", "warn", "run on a host whose KVM is not emulated",
                  "/dev/kvm is there but too slow: a probe guest of 100,000 instructions took %llu "
                  "us (limit 20,000)",
                  (unsigned long long)probe->kvm_probe_us);
    else
        check_add(wiring, "kvm", "ok", "", "runs a probe guest of 100,000 instructions in %llu us",
                  (unsigned long long)probe->kvm_probe_us);
    if (strcmp(probe->accelerator, "tcg") == 0)
        check_add(
            wiring, "isolation", "warn", "run on a host with KVM",
            "TCG is no security boundary by QEMU's own policy: do not run hostile guests here");
}

static bool qemu_add(struct wiring *wiring, const struct daemon_config *config, const char *keeper,
                     struct kelpie_error **err)
{
    struct klp_qemu_probe probe;
    struct kelpie_op op = klp_op_plain(wiring->env, 10000);
    klp_qemu_probe(&op, klp_arch_host(), config->qemu, &probe);
    if (!probe.found) {
        check_add(wiring, "qemu", "fail", "apt-get install qemu-system-x86", "%s", probe.why);
        check_add(wiring, "backend", "fail", "apt-get install qemu-system-x86", "none can be used");
        KLP_IGNORE(klp_refuse(err, KELPIE_E_UNSUPPORTED, "no backend can be used: %s", probe.why));
        klp_error_remedy_set(err, "apt-get install qemu-system-x86");
        return false;
    }
    check_add(wiring, "qemu", probe.has_xen_save ? "ok" : "fail", "", "QEMU %s at %s%s",
              probe.version, probe.path,
              probe.has_xen_save ? "" : " without xen-save-devices-state");
    kvm_check(wiring, &probe);
    check_add(wiring, "dirty-pages", "ok", "", "%s",
              probe.has_pagemap_scan ? "PAGEMAP_SCAN"
                                     : "pagemap (PAGEMAP_SCAN came with Linux 6.7)");
    check_add(wiring, "backend", "ok", "", "qemu with %s: %s", probe.accelerator, probe.why);
    if (wiring->vms_dir == NULL)
        return true; /* only asked what would be */
    struct klp_qemu_options options = {keeper, klp_arch_host(), &probe};
    KLP_CHECK(klp_vm_qemu_create(wiring->env, wiring->vms_dir, &options,
                                 &wiring->factories[wiring->factory_count], err));
    wiring->factory_count++;
    return true;
}
#else
static bool qemu_add(struct wiring *wiring, const struct daemon_config *config, const char *keeper,
                     struct kelpie_error **err)
{
    (void)config;
    (void)keeper;
    check_add(wiring, "qemu", "fail", "meson setup build -Dqemu=enabled",
              "compiled out of this kelpied");
    check_add(wiring, "backend", "fail", "meson setup build -Dqemu=enabled", "none can be used");
    KLP_IGNORE(klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "no backend can be used: QEMU is compiled out of this kelpied"));
    klp_error_remedy_set(err, "kelpied --backend mock");
    return false;
}
#endif

bool wiring_backends(struct wiring *wiring, const struct daemon_config *config,
                     struct kelpie_error **err)
{
    const char *backend = config->backend;
    char *keeper = helper_find("kelpie-keeper");
    bool fine = false;
    wiring->checks = klp_json_array();
    check_add(wiring, "firecracker", "warn", "", "not part of this release");
    if (keeper == NULL) {
        check_add(wiring, "keeper", "fail", "make", "kelpie-keeper is not beside kelpied");
        fine = klp_refuse(err, KELPIE_E_NOT_FOUND, "kelpie-keeper is not beside kelpied");
    } else if (strcmp(backend, "mock") == 0) {
        fine = wiring->vms_dir == NULL || mock_add(wiring, keeper, err);
    } else if (strcmp(backend, "auto") == 0 || strcmp(backend, "qemu") == 0) {
        fine = qemu_add(wiring, config, keeper, err);
    } else if (strcmp(backend, "firecracker") == 0 || strcmp(backend, "vz") == 0) {
        fine = klp_refuse(err, KELPIE_E_UNSUPPORTED, "backend '%s' is not part of this release",
                          backend);
    } else {
        fine = klp_refuse(err, KELPIE_E_INVALID, "'%s' is no backend: auto, qemu or mock", backend);
    }
    klp_mem_free(keeper);
    return fine;
}

bool wiring_storage(struct wiring *wiring, const struct daemon_config *config,
                    struct kelpie_error **err)
{
    KLP_CHECK(klp_dir_open(wiring->env, config->state, true, &wiring->state_dir, err));
    KLP_CHECK(klp_dir_open_at(wiring->state_dir, "vms", true, &wiring->vms_dir, err));
    KLP_CHECK(klp_dir_open_at(wiring->state_dir, "spool", true, &wiring->spool_dir, err));
    KLP_CHECK(klp_store_local_create(wiring->env, config->store, &wiring->store, err));
    return klp_registry_sqlite_create(wiring->env, config->registry, &wiring->registry, err);
}

void wiring_finish(struct wiring *wiring)
{
    for (size_t i = 0; i < wiring->factory_count; i++)
        klp_vm_factory_destroy(wiring->factories[i]);
    if (wiring->registry != NULL)
        klp_registry_destroy(wiring->registry);
    if (wiring->store != NULL)
        klp_store_destroy(wiring->store);
    klp_dir_close(wiring->spool_dir);
    klp_dir_close(wiring->vms_dir);
    klp_dir_close(wiring->state_dir);
    klp_json_free(wiring->checks);
    klp_env_posix_destroy(wiring->env);
}
