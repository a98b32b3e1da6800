/* SPDX-License-Identifier: Apache-2.0 */
/* Puts an image together: packages by fetch.c, their files by deb.c into a tree in memory, the
 * kernel by kernel.c, the tree by cpio.c into an unnamed file. Nothing has a name before the caller
 * stores it, so a failure or a kill leaves nothing but packages in the cache. */
#include "image/image_build.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/ext/sha256.h"
#include "base/fmt.h"
#include "base/limits.h"
#include "env/posix/posix.h"
#include "image/cpio.h"
#include "image/deb.h"
#include "image/elf.h"
#include "image/fetch.h"
#include "image/kernel.h"
#include "image/layout.h"
#include "image/library.h"
#include "image/recipe.h"

#define GUEST_SIZE_MAX (32u * KLP_MIB)
#define MODULES_FILE "etc/kelpie/modules"

struct building {
    const struct klp_image_build *build;
    const struct klp_recipe *recipe;
    struct klp_tree *tree; /* becomes the initramfs */
    struct klp_tree *boot; /* vmlinuz and the modules */
    struct klp_tree *pool; /* libraries that may be needed */
    size_t count;          /* kernel, busybox, then the recipe's parts in order */
    struct klp_package packages[KLP_PACKAGES_MAX];
};
enum { KERNEL, BUSYBOX, FIRST_PART };

static void building_destroy(struct building *building)
{
    klp_tree_destroy(building->tree);
    klp_tree_destroy(building->boot);
    klp_tree_destroy(building->pool);
    klp_mem_free(building);
}
KLP_AUTO_DEFINE(building, struct building *, building_destroy)

static void say(const struct klp_image_build *build, const char *format, ...) KLP_PRINTF(2, 3);
static void say(const struct klp_image_build *build, const char *format, ...)
{
    char line[256];
    va_list args;
    if (build->say == NULL)
        return;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    build->say(build->say_arg, line);
}

/* ---- what is asked for */

static bool recipe_choose(const struct klp_image_build *build, const struct klp_recipe **out,
                          struct kelpie_error **err)
{
    KLP_CHECK(klp_name_check("image", build->name, err));
    if (build->arch != KLP_ARCH_X86_64 && build->arch != KLP_ARCH_AARCH64)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "cannot build image '%s': images are for x86_64 or aarch64", build->name);
    *out = klp_recipe_find(build->recipe != NULL ? build->recipe : build->name);
    if (*out == NULL && build->recipe == NULL)
        *out = klp_recipe_find("base");
    if (*out == NULL)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "cannot build image '%s': no recipe '%s' (there are: base, python)",
                          build->name, build->recipe);
    return true;
}

static bool guest_read(const struct klp_image_build *build, struct klp_buf *out,
                       struct kelpie_error **err)
{
    int fd = open(build->guest_path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0) {
        bool refused = klp_posix_refuse(err, errno, "cannot open the guest agent for %s, '%s'",
                                        klp_arch_name(build->arch), build->guest_path);
        klp_error_remedy_set(err, "make");
        return refused;
    }
    bool good = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
    uint8_t *room = good ? klp_buf_reserve(out, (size_t)info.st_size) : NULL;
    ssize_t got = room == NULL ? -1 : read(fd, room, (size_t)info.st_size);
    close(fd);
    if (!good || (room != NULL && got != info.st_size))
        return klp_refuse(err, KELPIE_E_INVALID, "cannot read the guest agent '%s'",
                          build->guest_path);
    if (room != NULL)
        klp_buf_grow(out, (size_t)got);
    return klp_buf_check(out, "the guest agent", err);
}

static bool guest_check(const struct klp_image_build *build, struct klp_bytes guest,
                        struct kelpie_error **err)
{
    struct klp_elf elf;
    KLP_CHECK(klp_elf_parse(guest, build->guest_path, &elf, err));
    if (elf.arch != build->arch)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "cannot use the guest agent '%s': it is not for %s", build->guest_path,
                          klp_arch_name(build->arch));
    if (elf.interpreter != NULL || elf.needed_count > 0)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "cannot use the guest agent '%s': it is not linked statically",
                          build->guest_path);
    return true;
}

static bool guest_add(struct building *building, struct klp_digest *out_digest,
                      struct kelpie_error **err)
{
    KLP_AUTO(buf) struct klp_buf guest = KLP_BUF_INIT(GUEST_SIZE_MAX);
    KLP_CHECK(guest_read(building->build, &guest, err));
    KLP_CHECK(guest_check(building->build, klp_buf_view(&guest), err));
    klp_sha256_once(guest.data, guest.size, out_digest);
    return klp_tree_file_add(building->tree, "init", 0755, guest.data, guest.size, err);
}

/* ---- packages */

static kelpie_outcome packages_get(const struct kelpie_op *op, struct building *building,
                                   struct kelpie_error **err)
{
    const struct klp_image_build *build = building->build;
    struct klp_package *packages = building->packages;
    KLP_TRY(klp_fetch_kernel_name(op, build->arch, packages[KERNEL].name,
                                  sizeof(packages[KERNEL].name), err));
    klp_text_copy(packages[BUSYBOX].name, sizeof(packages[BUSYBOX].name), "busybox-static");
    building->count = FIRST_PART;
    for (const struct klp_recipe_part *part = building->recipe->parts; part->package != NULL;
         part++) {
        KLP_ASSERT(building->count < KLP_PACKAGES_MAX);
        klp_text_copy(packages[building->count++].name, sizeof(packages[0].name), part->package);
    }
    KLP_TRY(klp_fetch_resolve(op, build->arch, packages, building->count, err));
    return klp_fetch_packages(op, build->arch, build->cache_dir, packages, building->count,
                              build->say, build->say_arg, err);
}

static kelpie_outcome package_read(const struct kelpie_op *op, const struct building *building,
                                   size_t index, const struct klp_deb_take *take,
                                   struct kelpie_error **err)
{
    int fd = -1;
    const struct klp_package *package = &building->packages[index];
    KLP_REQUIRE(klp_fetch_open(building->build->cache_dir, package, &fd, err));
    kelpie_outcome outcome = klp_deb_read(op, fd, package->file, take, err);
    close(fd);
    return outcome;
}

static bool part_wants(const void *arg, const char *path)
{
    return klp_recipe_wants(arg, path);
}

static kelpie_outcome parts_add(const struct kelpie_op *op, struct building *building,
                                struct kelpie_error **err)
{
    const struct klp_recipe_part *parts = building->recipe->parts;
    for (size_t i = 0; parts[i].package != NULL; i++) {
        struct klp_deb_take take = {
            .want = part_wants,
            .arg = &parts[i],
            .tree = parts[i].kind == KLP_PART_LIBRARY ? building->pool : building->tree,
        };
        KLP_TRY(package_read(op, building, FIRST_PART + i, &take, err));
    }
    KLP_REQUIRE(klp_libraries_take(building->tree, building->pool, building->build->arch, err));
    return KLP_OK;
}

/* ---- busybox */

static bool busybox_wants(const void *arg, const char *path)
{
    (void)arg;
    return strcmp(path, "usr/bin/busybox") == 0;
}

static kelpie_outcome busybox_add(const struct kelpie_op *op, struct building *building,
                                  struct kelpie_error **err)
{
    struct klp_deb_take take = {.want = busybox_wants, .tree = building->tree};
    KLP_TRY(package_read(op, building, BUSYBOX, &take, err));
    const struct klp_tree_node *node = klp_tree_find(building->tree, "usr/bin/busybox");
    if (node == NULL || node->kind != KLP_TREE_FILE)
        return klp_fail(err, KELPIE_E_CORRUPT, "cannot use package '%s': it holds no busybox",
                        building->packages[BUSYBOX].file);
    struct klp_bytes bytes = {node->data, node->size}; /* stays while nodes move */
    KLP_REQUIRE(klp_layout_applets_add(building->tree, bytes, err));
    return KLP_OK;
}

/* ---- kernel */

/* Path of module `name` in the kernel's package; NULL = not there. */
static const struct klp_tree_node *module_find(const struct klp_tree *boot, const char *name)
{
    char suffix[64];
    snprintf(suffix, sizeof(suffix), "/%s.ko", name);
    return klp_tree_find_like(boot, "usr/lib/modules/", suffix);
}

static bool kernel_wants(const void *arg, const char *path)
{
    const char *file = strrchr(path, '/');
    if (strncmp(path, "boot/vmlinuz-", strlen("boot/vmlinuz-")) == 0)
        return true;
    if (file == NULL || strncmp(path, "usr/lib/modules/", strlen("usr/lib/modules/")) != 0)
        return false;
    for (const char *const *name = arg; *name != NULL; name++) {
        size_t size = strlen(*name);
        if (strncmp(file + 1, *name, size) == 0 && strcmp(file + 1 + size, ".ko") == 0)
            return true;
    }
    return false;
}

/* Moves the modules over and lists them, in the order the guest agent loads them. */
static bool modules_add(struct building *building, struct kelpie_error **err)
{
    char path[KLP_TREE_PATH_MAX + 1];
    KLP_AUTO(buf) struct klp_buf list = KLP_BUF_INIT(16 * KLP_KIB);
    for (const char *const *name = klp_recipe_modules(building->build->arch); *name != NULL;
         name++) {
        const struct klp_tree_node *node = module_find(building->boot, *name);
        if (node == NULL)
            return klp_refuse(err, KELPIE_E_CORRUPT,
                              "cannot use package '%s': it holds no module '%s'",
                              building->packages[KERNEL].file, *name);
        klp_text_copy(path, sizeof(path), node->path);
        KLP_CHECK(klp_tree_move(building->boot, path, building->tree, path, err));
        klp_buf_append_format(&list, "/%s\n", path);
    }
    KLP_CHECK(klp_buf_check(&list, "the list of modules", err));
    return klp_tree_text_add(building->tree, MODULES_FILE, 0644, klp_buf_text(&list), err);
}

static kelpie_outcome kernel_read(const struct kelpie_op *op, struct building *building,
                                  struct kelpie_error **err)
{
    struct klp_deb_take take = {
        .want = kernel_wants,
        .arg = klp_recipe_modules(building->build->arch),
        .tree = building->boot,
    };
    KLP_TRY(package_read(op, building, KERNEL, &take, err));
    KLP_REQUIRE(modules_add(building, err));
    return KLP_OK;
}

/* ---- output */

struct spool {
    int fd;
    uint64_t size;
    struct klp_sha256 *hash;
};

static void spool_finish(struct spool *spool)
{
    if (spool->fd >= 0)
        close(spool->fd);
    if (spool->hash != NULL)
        klp_sha256_destroy(spool->hash);
}

static inline void klp_auto_spool(struct spool *spool)
{
    spool_finish(spool);
}

static bool spool_init(struct spool *spool, const char *directory, struct kelpie_error **err)
{
    *spool = (struct spool){.fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)};
    if (spool->fd < 0) /* some file systems have no unnamed files */
        spool->fd = memfd_create("kelpie-image", MFD_CLOEXEC);
    if (spool->fd < 0)
        return klp_posix_refuse(err, errno, "cannot make a temporary file in '%s'", directory);
    spool->hash = klp_sha256_create();
    return true;
}

static bool spool_write(void *arg, const void *data, size_t size, struct kelpie_error **err)
{
    struct spool *spool = arg;
    klp_sha256_update(spool->hash, data, size);
    spool->size += size;
    for (size_t done = 0; done < size;) {
        ssize_t put = write(spool->fd, (const char *)data + done, size - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return klp_posix_refuse(err, errno, "cannot write the image");
        done += (size_t)put;
    }
    return true;
}

static bool spool_end(struct spool *spool, struct klp_object_ref *out, int *out_fd,
                      struct kelpie_error **err)
{
    if (lseek(spool->fd, 0, SEEK_SET) != 0)
        return klp_posix_refuse(err, errno, "cannot rewind the image");
    klp_sha256_final(spool->hash, &out->digest);
    out->size = spool->size;
    *out_fd = spool->fd;
    spool->fd = -1;
    return true;
}

static bool kernel_write(const struct building *building, struct klp_image_parts *parts,
                         struct kelpie_error **err)
{
    KLP_AUTO(spool) struct spool spool = {.fd = -1};
    const struct klp_tree_node *node = klp_tree_find_like(building->boot, "boot/vmlinuz-", "");
    if (node == NULL || node->kind != KLP_TREE_FILE)
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot use package '%s': it holds no kernel",
                          building->packages[KERNEL].file);
    KLP_CHECK(spool_init(&spool, building->build->cache_dir, err));
    struct klp_bytes bytes = {node->data, node->size};
    struct klp_sink sink = {spool_write, &spool};
    if (!klp_kernel_unpack(bytes, building->build->arch, sink, err))
        return klp_wrap_refusal(err, "cannot use package '%s': %s", building->packages[KERNEL].file,
                                klp_error_why(err));
    return spool_end(&spool, &parts->image.kernel, &parts->kernel_fd, err);
}

/* Many small writes of the archive become few. */
struct gather {
    struct spool *spool;
    size_t size;
    uint8_t bytes[256 * 1024];
};

static bool gather_flush(struct gather *gather, struct kelpie_error **err)
{
    size_t size = gather->size;
    gather->size = 0;
    return spool_write(gather->spool, gather->bytes, size, err);
}

static bool gather_write(void *arg, const void *data, size_t size, struct kelpie_error **err)
{
    struct gather *gather = arg;
    if (size > sizeof(gather->bytes) - gather->size)
        KLP_CHECK(gather_flush(gather, err));
    if (size > sizeof(gather->bytes))
        return spool_write(gather->spool, data, size, err);
    memcpy(gather->bytes + gather->size, data, size);
    gather->size += size;
    return true;
}

static bool initramfs_write(const struct building *building, struct klp_image_parts *parts,
                            struct kelpie_error **err)
{
    KLP_AUTO(spool) struct spool spool = {.fd = -1};
    KLP_AUTO(memory) struct gather *gather = klp_mem_alloc(sizeof(*gather));
    KLP_CHECK(spool_init(&spool, building->build->cache_dir, err));
    gather->spool = &spool;
    struct klp_sink sink = {gather_write, gather};
    KLP_CHECK(klp_cpio_write(building->tree, sink, err));
    KLP_CHECK(gather_flush(gather, err));
    return spool_end(&spool, &parts->image.initramfs, &parts->initramfs_fd, err);
}

/* ---- all of it */

static void image_describe(const struct building *building, struct klp_image *image)
{
    klp_text_copy(image->name, sizeof(image->name), building->build->name);
    klp_text_copy(image->version, sizeof(image->version), building->recipe->version);
    klp_text_copy(image->cmdline, sizeof(image->cmdline),
                  klp_recipe_cmdline(building->build->arch));
    image->arch = building->build->arch;
}

static kelpie_outcome tree_fill(const struct kelpie_op *op, struct building *building,
                                struct klp_digest *out_guest, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_layout_directories_add(building->tree, err));
    KLP_REQUIRE(klp_layout_directories_add(building->pool, err));
    KLP_REQUIRE(
        guest_add(building, out_guest, err)); /* cheap and often wrong: before any download */
    KLP_REQUIRE(klp_layout_base_add(building->tree, building->recipe->version, err));
    KLP_TRY(packages_get(op, building, err));
    say(building->build, "kernel: %s", building->packages[KERNEL].file);
    KLP_TRY(kernel_read(op, building, err));
    KLP_TRY(busybox_add(op, building, err));
    return parts_add(op, building, err);
}

kelpie_outcome klp_image_build(const struct kelpie_op *op, const struct klp_image_build *build,
                               struct klp_image_parts *out, struct kelpie_error **err)
{
    KLP_AUTO(building) struct building *building = KLP_NEW(struct building);
    struct klp_image_parts parts = {.kernel_fd = -1, .initramfs_fd = -1};
    building->build = build;
    building->tree = klp_tree_create();
    building->boot = klp_tree_create();
    building->pool = klp_tree_create();
    KLP_REQUIRE(recipe_choose(build, &building->recipe, err));
    KLP_TRY(tree_fill(op, building, &parts.image.guest, err));
    image_describe(building, &parts.image);
    KLP_REQUIRE(kernel_write(building, &parts, err));
    if (!initramfs_write(building, &parts, err)) {
        close(parts.kernel_fd);
        return (kelpie_outcome){KELPIE_FAIL};
    }
    say(build, "image %s %s (%s): %zu files, kernel %.1f MiB, initramfs %.1f MiB", build->name,
        parts.image.version, klp_arch_name(build->arch), building->tree->count,
        (double)parts.image.kernel.size / (double)KLP_MIB,
        (double)parts.image.initramfs.size / (double)KLP_MIB);
    *out = parts;
    return KLP_OK;
}
