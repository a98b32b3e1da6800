/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/wiring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/fmt.h"
#include "env/posix/posix.h"
#include "registry/sqlite/sqlite.h"
#include "store/local/local.h"
#include "vm/mock/mock.h"
#ifdef KLP_WITH_QEMU
#include "vm/qemu/qemu.h"
#endif

#define PROBE_MS 10000
#define QEMU_REMEDY "apt-get install qemu-system-x86"

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

/* ---- the choice */

/* One line for doctor and the log: what was chosen, by whom, why. */
static void chosen(struct wiring *wiring, const struct daemon_config *config, const char *backend,
                   const char *why)
{
    klp_format(wiring->choice, sizeof(wiring->choice), "%s, chosen by %s: %s", backend,
               strcmp(config->backend, "auto") == 0 ? "auto" : "name", why);
}

/* Nothing can be used: the check and the error say the same. */
static bool choose_none(struct wiring *wiring, const char *remedy, const char *why,
                        struct kelpie_error **err)
{
    check_add(wiring, "backend", "fail", remedy, "none can be used: %s", why);
    KLP_IGNORE(klp_refuse(err, KELPIE_E_UNSUPPORTED, "no backend can be used: %s", why));
    klp_error_remedy_set(err, "%s", remedy);
    return false;
}

static bool mock_choose(struct wiring *wiring, const struct daemon_config *config)
{
    chosen(wiring, config, "mock", "its guests are pretended, for tests only");
    check_add(wiring, "backend", "warn", "kelpied --backend auto", "%s", wiring->choice);
    return true;
}

#ifdef KLP_WITH_QEMU
static void kvm_check(struct wiring *wiring, const struct klp_qemu_probe *probe)
{
    if (probe->kvm_usable)
        check_add(wiring, "kvm", "ok", "", "runs a probe guest of 100,000 instructions in %llu us",
                  (unsigned long long)probe->kvm_probe_us);
    else if (!probe->kvm_present)
        check_add(wiring, "kvm", "warn", "run on a host with KVM", "%s", probe->kvm_why);
    else
        check_add(wiring, "kvm", "warn", "run on a host whose KVM is not emulated", "%s",
                  probe->kvm_why);
    if (strcmp(probe->accelerator, "tcg") == 0)
        check_add(
            wiring, "isolation", "warn", "run on a host with KVM",
            "TCG is no security boundary by QEMU's own policy: do not run hostile guests here");
}

static void qemu_checks(struct wiring *wiring, const struct klp_qemu_probe *probe)
{
    check_add(wiring, "qemu", probe->has_xen_save ? "ok" : "fail",
              probe->has_xen_save ? "" : QEMU_REMEDY, "QEMU %s at %s%s", probe->version,
              probe->path, probe->has_xen_save ? "" : " without xen-save-devices-state");
    kvm_check(wiring, probe);
    check_add(wiring, "dirty-pages", "ok", "", "%s",
              probe->has_pagemap_scan ? "PAGEMAP_SCAN"
                                      : "pagemap (PAGEMAP_SCAN came with Linux 6.7)");
}

static bool qemu_choose(struct wiring *wiring, const struct daemon_config *config,
                        struct kelpie_error **err)
{
    struct klp_qemu_probe *probe = KLP_NEW(struct klp_qemu_probe);
    struct kelpie_op op = klp_op_plain(wiring->env, PROBE_MS);
    char backend[32];
    wiring->qemu = probe;
    klp_qemu_probe(&op, klp_arch_host(), config->qemu, probe);
    if (!probe->found) {
        check_add(wiring, "qemu", "fail", QEMU_REMEDY, "%s", probe->why);
        kvm_check(wiring, probe);
        return choose_none(wiring, QEMU_REMEDY, probe->why, err);
    }
    qemu_checks(wiring, probe);
    klp_format(backend, sizeof(backend), "qemu with %s", probe->accelerator);
    chosen(wiring, config, backend, probe->why);
    check_add(wiring, "backend", "ok", "", "%s", wiring->choice);
    return true;
}
#else
static bool qemu_choose(struct wiring *wiring, const struct daemon_config *config,
                        struct kelpie_error **err)
{
    (void)config;
    check_add(wiring, "qemu", "fail", "make QEMU=enabled", "compiled out of this kelpied");
    return choose_none(wiring, "make QEMU=enabled", "QEMU is compiled out of this kelpied", err);
}
#endif

bool wiring_choose(struct wiring *wiring, const struct daemon_config *config,
                   struct kelpie_error **err)
{
    const char *backend = config->backend;
    wiring->keeper = helper_find("kelpie-keeper");
    wiring->checks = klp_json_array();
    check_add(wiring, "firecracker", "warn", "kelpied --backend auto", "not part of this release");
    if (wiring->keeper == NULL) {
        check_add(wiring, "keeper", "fail", "make", "kelpie-keeper is not beside kelpied");
        return choose_none(wiring, "make", "kelpie-keeper is not beside kelpied", err);
    }
    if (strcmp(backend, "mock") == 0)
        return mock_choose(wiring, config);
    if (strcmp(backend, "auto") == 0 || strcmp(backend, "qemu") == 0)
        return qemu_choose(wiring, config, err);
    if (strcmp(backend, "firecracker") == 0 || strcmp(backend, "vz") == 0) {
        char why[64];
        klp_format(why, sizeof(why), "'%s' is not part of this release", backend);
        return choose_none(wiring, "kelpied --backend auto", why, err);
    }
    return klp_refuse(err, KELPIE_E_INVALID, "'%s' is no backend: auto, qemu or mock", backend);
}

bool wiring_factory(struct wiring *wiring, const struct daemon_config *config,
                    struct kelpie_error **err)
{
    struct kelpie_vm_factory **place = &wiring->factories[wiring->factory_count];
    const struct klp_mock_options mock = {wiring->keeper, klp_arch_parse(config->mock_arch)};
    bool fine;
#ifdef KLP_WITH_QEMU
    const struct klp_qemu_options qemu = {wiring->keeper, klp_arch_host(), wiring->qemu};
    if (wiring->qemu != NULL)
        fine = klp_vm_qemu_create(wiring->env, wiring->vms_dir, &qemu, place, err);
    else
#endif
        fine = klp_vm_mock_create(wiring->env, wiring->vms_dir, &mock, place, err);
    wiring->factory_count += fine;
    return fine;
}

/* ---- storage */

bool wiring_state(struct wiring *wiring, const struct daemon_config *config,
                  struct kelpie_error **err)
{
    wiring->state_is_new = access(config->state, F_OK) != 0;
    KLP_CHECK(klp_dir_open(wiring->env, config->state, true, &wiring->state_dir, err));
    /* Two daemons over one state would adopt the same VMs. The lock goes with the process. */
    if (flock(klp_dir_fd(wiring->state_dir), LOCK_EX | LOCK_NB) == 0)
        return true;
    if (errno != EWOULDBLOCK)
        return klp_posix_refuse(err, errno, "cannot lock the state folder '%s'", config->state);
    KLP_IGNORE(klp_refuse(err, KELPIE_E_EXISTS,
                          "the state folder '%s' is in use by another kelpied", config->state));
    klp_error_remedy_set(err, "kelpied --state ANOTHER --name ANOTHER");
    return false;
}

static bool count_each(void *arg, const char *name)
{
    (void)name;
    (*(size_t *)arg)++;
    return true;
}

/* A new store where agents' snapshots are expected would hide that theirs is not there: its disk
 * is not mounted, or another folder was named. */
static bool store_is_expected(struct wiring *wiring)
{
    KLP_AUTO(dir) struct klp_dir *agents = NULL;
    size_t count = 0;
    return klp_dir_open_at(wiring->state_dir, "agents", false, &agents, NULL) &&
           klp_dir_list(agents, count_each, &count, NULL) && count > 0;
}

static bool store_open(struct wiring *wiring, const struct daemon_config *config,
                       struct kelpie_error **err)
{
    char *marker = klp_text("%s/kelpie-store", config->store);
    bool gone = access(marker, F_OK) != 0 && errno == ENOENT && store_is_expected(wiring);
    klp_mem_free(marker);
    if (!gone)
        return klp_store_local_create(wiring->env, config->store, &wiring->store, err);
    KLP_IGNORE(klp_refuse(err, KELPIE_E_UNREACHABLE,
                          "cannot open store '%s': the folder is gone, and '%s' has agents that "
                          "need it: is its disk mounted?",
                          config->store, config->state));
    klp_error_remedy_set(err, "kelpied --store PATH");
    return false;
}

/* Before a store is made: a registry that cannot be there would leave it behind. */
static bool registry_folder_check(const struct daemon_config *config, struct kelpie_error **err)
{
    const char *slash = strrchr(config->registry, '/');
    KLP_AUTO(memory)
    char *folder = klp_mem_string_n(
        config->registry, slash == config->registry ? 1 : (size_t)(slash - config->registry));
    if (access(folder, X_OK) == 0)
        return true;
    return klp_refuse(err, errno == EACCES ? KELPIE_E_DENIED : KELPIE_E_UNREACHABLE,
                      "cannot open registry '%s': folder '%s': %s", config->registry, folder,
                      strerror(errno));
}

bool wiring_storage(struct wiring *wiring, const struct daemon_config *config,
                    struct kelpie_error **err)
{
    KLP_CHECK(registry_folder_check(config, err));
    KLP_CHECK(klp_dir_open_at(wiring->state_dir, "vms", true, &wiring->vms_dir, err));
    KLP_CHECK(klp_dir_open_at(wiring->state_dir, "spool", true, &wiring->spool_dir, err));
    KLP_CHECK(store_open(wiring, config, err));
    return klp_registry_sqlite_create(wiring->env, config->registry, &wiring->registry, err);
}

void wiring_unmake(struct wiring *wiring, const struct daemon_config *config)
{
    static const char *const folders[] = {"vms", "spool", "agents", "notes", "operations"};
    if (!wiring->state_is_new || wiring->state_dir == NULL)
        return;
    for (size_t i = 0; i < KLP_COUNT(folders); i++)
        KLP_IGNORE(klp_dir_remove(wiring->state_dir, folders[i], NULL));
    rmdir(config->state);
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
    klp_mem_free(wiring->qemu);
    klp_mem_free(wiring->keeper);
    klp_env_posix_destroy(wiring->env);
}
