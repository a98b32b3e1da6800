/* SPDX-License-Identifier: Apache-2.0 */
/* The recipes. Sources of the numbers and orders: qemu-lab 1.1 (modules), 1.2 (kernel flags), 8
 * (aarch64); package names: Debian 12. */
#include "image/recipe.h"

#include <string.h>

/* ---- python */

static const char *const interpreter_files[] = {"usr/bin/python3.11", NULL};
static const char *const alias_files[] = {"usr/bin/python3", NULL};
static const char *const standard_library[] = {"usr/lib/python3.11/", "etc/python3.11/", NULL};
static const char *const terminals[] = {
    "usr/lib/terminfo/a/ansi",
    "usr/lib/terminfo/d/dumb",
    "usr/lib/terminfo/l/linux",
    "usr/lib/terminfo/s/screen",
    "usr/lib/terminfo/s/screen-256color",
    "usr/lib/terminfo/t/tmux-256color",
    "usr/lib/terminfo/v/vt100",
    "usr/lib/terminfo/x/xterm",
    "usr/lib/terminfo/x/xterm-256color",
    NULL,
};

/* libc loads it by name when a thread ends by pthread_exit, as Python's daemon threads do: no
 * program names it, so the closure of libraries does not find it. */
static const char *const unwinder[] = {
    "usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
    "usr/lib/aarch64-linux-gnu/libgcc_s.so.1",
    NULL,
};

static const struct klp_recipe_part python_parts[] = {
    {"python3.11-minimal", KLP_PART_FILES, interpreter_files},
    {"python3-minimal", KLP_PART_FILES, alias_files},
    {"libpython3.11-minimal", KLP_PART_FILES, standard_library},
    {"libpython3.11-stdlib", KLP_PART_FILES, standard_library},
    {"ncurses-base", KLP_PART_FILES, terminals},
    {"libgcc-s1", KLP_PART_FILES, unwinder},
    {"libc6", KLP_PART_LIBRARY, NULL},
    {"libcrypt1", KLP_PART_LIBRARY, NULL},
    {"zlib1g", KLP_PART_LIBRARY, NULL},
    {"libexpat1", KLP_PART_LIBRARY, NULL},
    {"libssl3", KLP_PART_LIBRARY, NULL},
    {"libbz2-1.0", KLP_PART_LIBRARY, NULL},
    {"liblzma5", KLP_PART_LIBRARY, NULL},
    {"libsqlite3-0", KLP_PART_LIBRARY, NULL},
    {"libffi8", KLP_PART_LIBRARY, NULL},
    {"libreadline8", KLP_PART_LIBRARY, NULL},
    {"libncursesw6", KLP_PART_LIBRARY, NULL},
    {"libtinfo6", KLP_PART_LIBRARY, NULL},
    {"libuuid1", KLP_PART_LIBRARY, NULL},
    {NULL, KLP_PART_FILES, NULL},
};

static const struct klp_recipe_part no_parts[] = {{NULL, KLP_PART_FILES, NULL}};

static const struct klp_recipe recipes[] = {
    {"base", "1.0.0", no_parts},
    {"python", "1.0.0", python_parts},
};

const struct klp_recipe *klp_recipe_find(const char *name)
{
    for (size_t i = 0; i < KLP_COUNT(recipes); i++)
        if (strcmp(recipes[i].name, name) == 0)
            return &recipes[i];
    return NULL;
}

/* ---- kernel */

const char *const *klp_recipe_modules(enum klp_arch arch)
{
    /* virtio_ring before virtio: virtio needs symbols of it. */
    static const char *const x86_64[] = {
        "virtio_ring",
        "virtio",
        "virtio_mmio",
        "virtio_pci_legacy_dev",
        "virtio_pci_modern_dev",
        "virtio_pci",
        "virtio_console",
        "pvpanic",
        "pvpanic-mmio",
        "pvpanic-pci",
        NULL,
    };
    /* Debian's arm64 cloud kernel has no pvpanic. */
    static const char *const aarch64[] = {
        "virtio_ring",           "virtio",     "virtio_mmio",    "virtio_pci_legacy_dev",
        "virtio_pci_modern_dev", "virtio_pci", "virtio_console", NULL,
    };
    return arch == KLP_ARCH_AARCH64 ? aarch64 : x86_64;
}

const char *klp_recipe_cmdline(enum klp_arch arch)
{
    if (arch == KLP_ARCH_AARCH64)
        return "panic=-1 quiet cryptomgr.notests mitigations=off init_on_alloc=0 lsm= audit=0 "
               "ipv6.disable=1";
    /* A backend adds tsc_early_khz=, which belongs to a host. */
    return "panic=-1 quiet tsc=reliable no_timer_check cryptomgr.notests mitigations=off "
           "init_on_alloc=0 lsm= audit=0 ipv6.disable=1";
}

/* ---- which files */

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool ends_with(const char *text, const char *suffix)
{
    size_t size = strlen(text), suffix_size = strlen(suffix);
    return size >= suffix_size && strcmp(text + size - suffix_size, suffix) == 0;
}

/* Tests, teaching material, help texts, other systems' scripts: a quarter of the standard library.
 */
static bool is_ballast(const char *path)
{
    static const char *const directories[] = {
        "/__phello__/", "/__pycache__/", "/config-3.11", "/ensurepip/", "/idlelib/",    "/lib2to3/",
        "/pydoc_data/", "/test/",        "/tests/",      "/tkinter/",   "/turtledemo/",
    };
    static const char *const modules[] = {
        "/lib-dynload/_ctypes_test.", "/lib-dynload/_dbm.", "/lib-dynload/_test",
        "/lib-dynload/_xxtestfuzz.",  "/lib-dynload/nis.",  "/lib-dynload/ossaudiodev.",
        "/lib-dynload/xxlimited",     "/turtle.py",         "/EXTERNALLY-MANAGED",
        "/_distutils_system_mod.py",
    };
    for (size_t i = 0; i < KLP_COUNT(directories); i++)
        if (strstr(path, directories[i]) != NULL)
            return true;
    for (size_t i = 0; i < KLP_COUNT(modules); i++)
        if (strstr(path, modules[i]) != NULL)
            return true;
    return ends_with(path, ".ps1") || ends_with(path, ".rst") || ends_with(path, ".pyc");
}

static bool is_library(const char *path)
{
    return starts_with(path, "usr/lib") && strstr(path, ".so") != NULL;
}

bool klp_recipe_wants(const struct klp_recipe_part *part, const char *path)
{
    if (part->kind == KLP_PART_LIBRARY)
        return is_library(path);
    for (const char *const *keep = part->keep; *keep != NULL; keep++) {
        if (strcmp(path, *keep) == 0)
            return true;
        if (ends_with(*keep, "/") && starts_with(path, *keep))
            return !is_ballast(path);
    }
    return false;
}
