/* SPDX-License-Identifier: Apache-2.0 */
/* The file part of UNIQUE: machine-id, boot_id, host name, seed files, SSH host keys; which of them
 * in which case is the table of reliability-security 5. What must stay is reported as it stands. */
#include "guest/guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fmt.h"

#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define ID_SIZE 16

/* ---- ids */

/* 32 hex digits, dashes between them allowed; false: something else. */
static bool id_parse(const char *text, uint8_t out[ID_SIZE])
{
    char digits[2 * ID_SIZE + 1];
    size_t count = 0;
    for (; *text != '\0' && *text != '\n' && count < 2 * ID_SIZE; text++) {
        if (*text != '-')
            digits[count++] = *text;
    }
    return (*text == '\0' || *text == '\n') && count == 2 * ID_SIZE &&
           klp_hex_decode(digits, count, out, ID_SIZE);
}

static bool id_read(const char *path, uint8_t out[ID_SIZE])
{
    char text[64];
    return guest_file_read(path, text, sizeof(text)) > 0 && id_parse(text, out);
}

static void item_of_file(struct guest_unique *unique, enum klp_unique_item item, const char *path,
                         const uint8_t *wanted)
{
    uint8_t now[ID_SIZE];
    bool known = id_read(path, now);
    if (wanted == NULL)
        guest_item_set(unique, item, KLP_UNIQUE_NOT_APPLICABLE, now, known ? sizeof(now) : 0);
    else if (known && memcmp(now, wanted, sizeof(now)) == 0)
        guest_item_set(unique, item, KLP_UNIQUE_DONE, now, sizeof(now));
    else
        guest_item_text(unique, item, KLP_UNIQUE_FAILED, "another value is in force");
}

/* A file of ours laid over what cannot be written; what lay there of ours before comes off first.
 */
static bool bind_over(const char *path, const char *text, const char *source)
{
    if (!guest_file_rewrite(source, text, strlen(text), 0444))
        return false;
    while (umount2(path, MNT_DETACH) == 0) {
    }
    return mount(source, path, NULL, MS_BIND, NULL) == 0;
}

static bool run_folder_make(const struct guest *g)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *err = NULL;
    char path[KLP_PATH_MAX];
    return guest_system_path(g, "/run/kelpie", path) && guest_make_folders(path, &err);
}

static void machine_id_renew(const struct guest *g, const struct guest_unique *unique)
{
    char path[KLP_PATH_MAX], bus[KLP_PATH_MAX], source[KLP_PATH_MAX], text[2 * ID_SIZE + 2];
    struct stat info;
    klp_hex_encode(unique->machine_id, ID_SIZE, text);
    text[2 * ID_SIZE] = '\n';
    text[2 * ID_SIZE + 1] = '\0';
    if (!guest_system_path(g, "/etc/machine-id", path))
        return;
    bool written = guest_file_rewrite(path, text, strlen(text), 0444);
    if (!written && g->options.system && run_folder_make(g) &&
        guest_system_path(g, "/run/kelpie/machine-id", source))
        bind_over(path, text, source);
    if (guest_system_path(g, "/var/lib/dbus/machine-id", bus) && lstat(bus, &info) == 0 &&
        S_ISREG(info.st_mode))
        guest_file_rewrite(bus, text, strlen(text), 0444);
}

static void machine_id_item(struct guest *g, struct guest_unique *unique)
{
    char path[KLP_PATH_MAX];
    bool is_fork = unique->kind == KLP_UNIQUE_FORK;
    if (!guest_system_path(g, "/etc/machine-id", path)) {
        guest_item_text(unique, KLP_ITEM_MACHINE_ID, KLP_UNIQUE_NOT_APPLICABLE, "");
        return;
    }
    if (is_fork && !unique->has_machine_id) {
        guest_item_text(unique, KLP_ITEM_MACHINE_ID, KLP_UNIQUE_FAILED, "none was given");
        return;
    }
    if (is_fork)
        machine_id_renew(g, unique);
    item_of_file(unique, KLP_ITEM_MACHINE_ID, path, is_fork ? unique->machine_id : NULL);
}

static void boot_id_renew(const struct guest *g, const struct guest_unique *unique)
{
    char hex[2 * ID_SIZE + 1], text[64], source[KLP_PATH_MAX];
    uint8_t now[ID_SIZE];
    klp_hex_encode(unique->boot_id, ID_SIZE, hex);
    klp_format(text, sizeof(text), "%.*s-%.*s-%.*s-%.*s-%s\n", 8, hex, 4, hex + 8, 4, hex + 12, 4,
               hex + 16, hex + 20);
    if (!guest_system_path(g, "/run/kelpie/boot_id", source))
        return;
    bool written = guest_file_rewrite(source, text, strlen(text), 0444);
    bool is_seen = written && id_read(BOOT_ID, now) && memcmp(now, unique->boot_id, ID_SIZE) == 0;
    if (!is_seen && run_folder_make(g))
        bind_over(BOOT_ID, text, source);
}

static void boot_id_item(struct guest *g, struct guest_unique *unique)
{
    bool is_new = unique->kind != KLP_UNIQUE_MOVE;
    if (!g->options.system) {
        guest_item_text(unique, KLP_ITEM_BOOT_ID, KLP_UNIQUE_NOT_APPLICABLE, "");
        return;
    }
    if (is_new && !unique->has_boot_id) {
        guest_item_text(unique, KLP_ITEM_BOOT_ID, KLP_UNIQUE_FAILED, "none was given");
        return;
    }
    if (is_new)
        boot_id_renew(g, unique);
    item_of_file(unique, KLP_ITEM_BOOT_ID, BOOT_ID, is_new ? unique->boot_id : NULL);
}

static void hostname_item(struct guest *g, struct guest_unique *unique)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *err = NULL;
    char now[65] = "";
    bool is_fork = unique->kind == KLP_UNIQUE_FORK;
    uint16_t result = KLP_UNIQUE_NOT_APPLICABLE;
    bool set =
        is_fork && unique->hostname[0] != '\0' && guest_hostname_set(g, unique->hostname, &err);
    if (gethostname(now, sizeof(now) - 1) < 0)
        now[0] = '\0';
    if (is_fork && g->options.system)
        result = set && strcmp(now, unique->hostname) == 0 ? KLP_UNIQUE_DONE : KLP_UNIQUE_FAILED;
    guest_item_text(unique, KLP_ITEM_HOSTNAME, result, g->options.system ? now : "");
}

void guest_unique_identity(struct guest *g, struct guest_unique *unique)
{
    machine_id_item(g, unique);
    boot_id_item(g, unique);
    hostname_item(g, unique);
}

/* ---- files that hold state of the random source or of the network */

struct file_family {
    const char *folder, *prefix, *suffix;
};

static const struct file_family seed_files[] = {
    {"/var/lib/systemd", "random-seed", ""}, {"/var/lib/systemd/random-seed.d", "", ""},
    {"/var/lib/urandom", "random-seed", ""}, {"/var/lib", "random-seed", ""},
    {"/var/lib/seedrng", "seed", ""},        {"/etc", "random-seed", ""},
    {"/var/lib/dhcp", "", ".leases"},        {"/var/lib/dhclient", "", ".leases"},
    {"/var/lib/dhcpcd", "", ".lease"},       {"/var/lib/dhcpcd", "duid", ""},
    {"/var/lib/systemd/network", "", ""},
};

static const struct file_family key_files[] = {
    {"/etc/ssh", "ssh_host_", "_key"},
    {"/etc/ssh", "ssh_host_", "_key.pub"},
};

static bool name_fits(const struct file_family *family, const char *name)
{
    size_t size = strlen(name), before = strlen(family->prefix), behind = strlen(family->suffix);
    return name[0] != '.' && size >= before + behind &&
           strncmp(name, family->prefix, before) == 0 &&
           strcmp(name + size - behind, family->suffix) == 0;
}

/* Files of the family that are there; deleted when `remove_them`, those that could not be in
 * *failed. */
static int family_visit(const struct guest *g, const struct file_family *family, bool remove_them,
                        int *failed)
{
    char folder[KLP_PATH_MAX];
    int count = 0;
    DIR *list = guest_system_path(g, family->folder, folder) ? opendir(folder) : NULL;
    if (list == NULL)
        return 0;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        struct stat info;
        if (!name_fits(family, entry->d_name) ||
            fstatat(dirfd(list), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISREG(info.st_mode))
            continue;
        count++;
        if (remove_them && unlinkat(dirfd(list), entry->d_name, 0) < 0)
            (*failed)++;
    }
    closedir(list);
    return count;
}

int guest_seeds_delete(const struct guest *g, int *failed)
{
    int count = 0;
    for (size_t i = 0; i < KLP_COUNT(seed_files); i++)
        count += family_visit(g, &seed_files[i], true, failed);
    return count;
}

void guest_unique_seeds(struct guest *g, struct guest_unique *unique)
{
    char text[32];
    bool is_frozen = g->freeze.state == GUEST_FROZEN; /* nobody made new ones since */
    int failed = g->freeze.seeds_failed;
    int count = is_frozen ? g->freeze.seeds_deleted : guest_seeds_delete(g, &failed);
    uint16_t result = count == 0 ? KLP_UNIQUE_NOT_APPLICABLE : KLP_UNIQUE_DONE;
    klp_format(text, sizeof(text), "%d deleted", count - failed);
    guest_item_text(unique, KLP_ITEM_SEED_FILES, failed > 0 ? KLP_UNIQUE_FAILED : result,
                    count > 0 ? text : "");
}

/* ---- SSH host keys */

static int keys_visit(const struct guest *g, bool remove_them, int *failed)
{
    int count = 0;
    for (size_t i = 0; i < KLP_COUNT(key_files); i++)
        count += family_visit(g, &key_files[i], remove_them, failed);
    return count;
}

bool guest_unique_keys(struct guest *g, struct guest_unique *unique)
{
    int failed = 0, count = 0;
    if (unique->kind == KLP_UNIQUE_FORK)
        count = keys_visit(g, true, &failed);
    if (failed > 0)
        guest_item_text(unique, KLP_ITEM_SSH_KEYS, KLP_UNIQUE_FAILED, "old keys remain");
    else if (count == 0)
        guest_item_text(unique, KLP_ITEM_SSH_KEYS, KLP_UNIQUE_NOT_APPLICABLE, "");
    return count > 0 && failed == 0;
}

/* A server that was frozen with its old keys in memory reads the new ones when it is thawed. */
static void ssh_server_reload(const struct guest *g)
{
    char text[32];
    if (!g->options.system || guest_file_read("/run/sshd.pid", text, sizeof(text)) <= 0)
        return;
    long pid = strtol(text, NULL, 10);
    if (pid > 1 && pid < INT32_MAX)
        kill((pid_t)pid, SIGHUP);
}

void guest_unique_keys_made(struct guest *g, struct guest_unique *unique, const char *failure)
{
    char text[32];
    int failed = 0, count = keys_visit(g, false, &failed);
    bool fine = failure == NULL && count > 0;
    klp_format(text, sizeof(text), "%d files made", count);
    guest_item_text(unique, KLP_ITEM_SSH_KEYS, fine ? KLP_UNIQUE_DONE : KLP_UNIQUE_FAILED,
                    fine || failure == NULL ? text : failure);
    if (fine)
        ssh_server_reload(g);
}
