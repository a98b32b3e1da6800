/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's layout. The contents of /etc are the least with which name look-ups, shells and
 * Python's modules work; whatever an agent needs beyond comes with a recipe. */
#include "image/layout.h"

#include <stdio.h>
#include <string.h>

#define APPLETS_MAX 1000
#define APPLET_NAME_MAX 32

const char *klp_layout_triplet(enum klp_arch arch)
{
    return arch == KLP_ARCH_AARCH64 ? "aarch64-linux-gnu" : "x86_64-linux-gnu";
}

static const char *component_follows(const char *path, const char *component)
{
    size_t size = strlen(component);
    bool is_it = strncmp(path, component, size) == 0 && (path[size] == '/' || path[size] == '\0');
    return is_it ? path + size : NULL;
}

bool klp_layout_path(const char *path, char *out, struct kelpie_error **err)
{
    static const char *const moves[][2] = {
        {"bin", "usr/bin"}, {"sbin", "usr/bin"},    {"usr/sbin", "usr/bin"},
        {"lib", "usr/lib"}, {"lib64", "usr/lib64"},
    };
    const char *prefix = "", *rest = path;
    while (rest[0] == '/' || (rest[0] == '.' && rest[1] == '/'))
        rest++;
    for (size_t i = 0; i < KLP_COUNT(moves); i++) {
        const char *follows = component_follows(rest, moves[i][0]);
        if (follows != NULL) {
            prefix = moves[i][1];
            rest = follows;
            break;
        }
    }
    int size = snprintf(out, KLP_TREE_PATH_MAX + 1, "%s%s", prefix, rest);
    if (size < 0 || (size_t)size > KLP_TREE_PATH_MAX)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot place a file: a path of %zu bytes is too long", strlen(path));
    return klp_tree_path_check(out, err);
}

bool klp_layout_directories_add(struct klp_tree *tree, struct kelpie_error **err)
{
    static const char *const directories[] = {"usr/bin", "usr/lib", "usr/lib64"};
    static const char *const links[][2] = {
        {"bin", "usr/bin"}, {"sbin", "usr/bin"},    {"usr/sbin", "bin"},
        {"lib", "usr/lib"}, {"lib64", "usr/lib64"},
    };
    for (size_t i = 0; i < KLP_COUNT(directories); i++)
        KLP_CHECK(klp_tree_directory_add(tree, directories[i], 0755, err));
    for (size_t i = 0; i < KLP_COUNT(links); i++)
        KLP_CHECK(klp_tree_symlink_add(tree, links[i][0], links[i][1], err));
    return true;
}

static bool mount_points_add(struct klp_tree *tree, struct kelpie_error **err)
{
    static const struct {
        const char *path;
        uint32_t mode;
    } directories[] = {
        {"dev", 0755}, {"proc", 0555},     {"root", 0700},      {"run", 0755},
        {"sys", 0555}, {"var/tmp", 01777}, {"workspace", 0755}, {"tmp", 01777},
    };
    for (size_t i = 0; i < KLP_COUNT(directories); i++)
        KLP_CHECK(klp_tree_directory_add(tree, directories[i].path, directories[i].mode, err));
    /* The kernel opens /dev/console for init before anything could mount devtmpfs. */
    return klp_tree_device_add(tree, "dev/console", 0600, 5, 1, err) &&
           klp_tree_device_add(tree, "dev/null", 0666, 1, 3, err) &&
           klp_tree_symlink_add(tree, "var/run", "/run", err);
}

static bool etc_add(struct klp_tree *tree, const char *version, struct kelpie_error **err)
{
    static const char *const files[][2] = {
        {"etc/group", "root:x:0:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n"},
        {"etc/hostname", "kelpie\n"},
        {"etc/hosts", "127.0.0.1 localhost kelpie\n::1 localhost\n"},
        {"etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n"},
        {"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"
                       "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"},
        {"etc/shells", "/bin/sh\n"},
    };
    char release[256];
    for (size_t i = 0; i < KLP_COUNT(files); i++)
        KLP_CHECK(klp_tree_text_add(tree, files[i][0], 0644, files[i][1], err));
    snprintf(release, sizeof(release),
             "NAME=\"Kelpie\"\nPRETTY_NAME=\"Kelpie %s\"\nID=kelpie\nID_LIKE=debian\n"
             "VERSION_ID=\"%s\"\n",
             version, version);
    return klp_tree_text_add(tree, "etc/os-release", 0644, release, err);
}

bool klp_layout_base_add(struct klp_tree *tree, const char *version, struct kelpie_error **err)
{
    return mount_points_add(tree, err) && etc_add(tree, version, err);
}

/* ---- applets */

/* The table of a busybox: names in order, each ended by NUL, the first two being "[" and "[[". */
static struct klp_bytes applet_table_find(struct klp_bytes busybox)
{
    static const char head[] = "\0[\0[["; /* and the NUL that ends the literal */
    for (size_t at = 0; at + sizeof(head) <= busybox.size; at++) {
        if (busybox.data[at] == 0 && memcmp(busybox.data + at, head, sizeof(head)) == 0)
            return (struct klp_bytes){busybox.data + at + 1, busybox.size - at - 1};
    }
    return (struct klp_bytes){NULL, 0};
}

static bool applet_name_is_good(const char *name, size_t size)
{
    static const char set[] = "abcdefghijklmnopqrstuvwxyz0123456789[_-+.";
    return size > 0 && size <= APPLET_NAME_MAX && name[0] != '.' && strspn(name, set) == size;
}

static bool applet_add(struct klp_tree *tree, const char *name, struct kelpie_error **err)
{
    char path[APPLET_NAME_MAX + 16];
    snprintf(path, sizeof(path), "usr/bin/%s", name);
    return klp_tree_find(tree, path) != NULL || klp_tree_symlink_add(tree, path, "busybox", err);
}

static bool common_applets_add(struct klp_tree *tree, struct kelpie_error **err)
{
    static const char *const names[] = {
        "[",     "[[",     "ash",       "awk",      "base64",  "basename", "bunzip2", "bzcat",
        "cat",   "chgrp",  "chmod",     "chown",    "clear",   "cmp",      "cp",      "cut",
        "date",  "dd",     "df",        "diff",     "dirname", "dmesg",    "du",      "echo",
        "ed",    "env",    "expr",      "false",    "find",    "free",     "grep",    "gunzip",
        "gzip",  "head",   "hexdump",   "hostname", "id",      "ip",       "kill",    "less",
        "ln",    "ls",     "md5sum",    "mkdir",    "mkfifo",  "mknod",    "mktemp",  "more",
        "mount", "mv",     "nc",        "nproc",    "od",      "patch",    "ping",    "printf",
        "ps",    "pwd",    "readlink",  "realpath", "reset",   "rm",       "rmdir",   "sed",
        "seq",   "sh",     "sha256sum", "sleep",    "sort",    "split",    "stat",    "stty",
        "sync",  "tac",    "tail",      "tar",      "tee",     "test",     "timeout", "top",
        "touch", "tr",     "true",      "tty",      "umount",  "uname",    "uniq",    "unxz",
        "unzip", "uptime", "vi",        "wc",       "wget",    "which",    "whoami",  "xargs",
        "xxd",   "xzcat",  "yes",       "zcat",
    };
    for (size_t i = 0; i < KLP_COUNT(names); i++)
        KLP_CHECK(applet_add(tree, names[i], err));
    return true;
}

/* Counts the names up to the empty one that ends the table; 0 = no readable table. */
static size_t applets_count(struct klp_bytes table)
{
    size_t count = 0;
    bool has_shell = false;
    const char *at = (const char *)table.data;
    for (size_t left = table.size; left > 0; count++) {
        const char *end = memchr(at, 0, left);
        if (end == at)
            return has_shell ? count : 0;
        if (end == NULL || count == APPLETS_MAX || !applet_name_is_good(at, (size_t)(end - at)))
            return 0;
        has_shell |= strcmp(at, "sh") == 0;
        left -= (size_t)(end - at) + 1;
        at = end + 1;
    }
    return 0;
}

bool klp_layout_applets_add(struct klp_tree *tree, struct klp_bytes busybox,
                            struct kelpie_error **err)
{
    struct klp_bytes table = applet_table_find(busybox);
    size_t count = applets_count(table);
    if (count == 0)
        return common_applets_add(tree, err);
    const char *at = (const char *)table.data;
    for (size_t i = 0; i < count; i++, at += strlen(at) + 1)
        KLP_CHECK(applet_add(tree, at, err));
    return true;
}
