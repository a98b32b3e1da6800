/* SPDX-License-Identifier: Apache-2.0 */
/* The image object, JSON (docs/formats/image.md), and version numbers. The parts it names are the
 * store's; building them is image/. */
#include <string.h>

#include "base/fmt.h"
#include "format/image.h"
#include "format/wire.h"

#define IMAGE_VERSION 1
#define IMAGE_SIZE_MAX 4096u /* bytes of the document */
#define IMAGE_DEPTH_MAX 4
#define VERSION_PART_MAX 65535u

bool klp_version_parse(const char *text, uint32_t out[3], struct kelpie_error **err)
{
    const char *at = text;
    uint32_t parts[3];
    for (size_t i = 0; i < KLP_COUNT(parts); i++) {
        size_t size = 0;
        uint64_t value = 0;
        while (at[size] >= '0' && at[size] <= '9')
            size++;
        bool is_spelled_well = size == 1 || (size > 1 && at[0] != '0');
        if (!is_spelled_well || !klp_parse_u64(at, size, &value) || value > VERSION_PART_MAX ||
            at[size] != (i < 2 ? '.' : '\0'))
            return klp_refuse(err, KELPIE_E_INVALID,
                              "version '%.*s' is not MAJOR.MINOR.PATCH, each at most %u", 32, text,
                              VERSION_PART_MAX);
        parts[i] = (uint32_t)value;
        at += size + 1;
    }
    memcpy(out, parts, sizeof(parts));
    return true;
}

static void ref_set(struct klp_json *json, const char *key, const struct klp_object_ref *ref)
{
    if (ref->size == 0) {
        klp_json_set_null(json, key);
        return;
    }
    struct klp_json *object = klp_json_object();
    klp_wire_set_digest(object, "digest", &ref->digest);
    klp_json_set_u64(object, "size_bytes", ref->size);
    klp_json_set(json, key, object);
}

void klp_image_encode(const struct klp_image *image, struct klp_buf *out)
{
    KLP_AUTO(json) struct klp_json *json = klp_json_object();
    klp_json_set_text(json, "format", "kelpie-image");
    klp_json_set_u64(json, "format_version", IMAGE_VERSION);
    klp_json_set_text(json, "name", image->name);
    klp_json_set_text(json, "version", image->version);
    klp_wire_set_arch(json, "arch", image->arch);
    ref_set(json, "kernel", &image->kernel);
    ref_set(json, "initramfs", &image->initramfs);
    klp_json_set_text(json, "cmdline", image->cmdline);
    klp_wire_set_digest(json, "guest", &image->guest);
    klp_json_print(json, out);
}

static bool ref_get(const struct klp_json *json, const char *key, bool required,
                    struct klp_object_ref *out, struct kelpie_error **err)
{
    const struct klp_json *ref = klp_json_find(json, key);
    if (klp_wire_is_absent(json, key) && !required)
        return true;
    if (!klp_json_is_object(ref))
        return klp_refuse(err, KELPIE_E_INVALID, "field '%s' is missing or no object", key);
    KLP_CHECK(klp_wire_get_digest(ref, "digest", KLP_JSON_REQUIRED, &out->digest, err));
    KLP_CHECK(klp_json_get_u64(ref, "size_bytes", KLP_JSON_REQUIRED, &out->size, err));
    if (out->size == 0 || out->size > KLP_IMAGE_PART_MAX || klp_digest_is_zero(&out->digest))
        return klp_refuse(err, KELPIE_E_INVALID, "field '%s' has a size or digest out of range",
                          key);
    return true;
}

/* It goes to the kernel's command line. */
static bool cmdline_get(const struct klp_json *json, struct klp_image *out,
                        struct kelpie_error **err)
{
    KLP_CHECK(klp_wire_get_text(json, "cmdline", KLP_JSON_OPTIONAL, out->cmdline,
                                sizeof(out->cmdline), err));
    for (const char *at = out->cmdline; *at != '\0'; at++) {
        if (*at < ' ' || *at > '~')
            return klp_refuse(err, KELPIE_E_INVALID, "field 'cmdline' is not printable ASCII");
    }
    return true;
}

static bool format_get(const struct klp_json *json, struct kelpie_error **err)
{
    const char *format = NULL;
    uint64_t version = 0;
    KLP_CHECK(klp_json_get_text(json, "format", KLP_JSON_REQUIRED, &format, err));
    KLP_CHECK(klp_json_get_u64(json, "format_version", KLP_JSON_REQUIRED, &version, err));
    if (strcmp(format, "kelpie-image") != 0)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'format' is not kelpie-image");
    if (version == 0)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'format_version' is out of range");
    if (version != IMAGE_VERSION)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED, "format version is of a newer release");
    return true;
}

static bool image_get(struct klp_bytes text, struct klp_image *out, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    uint32_t version[3];
    if (text.size > IMAGE_SIZE_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "is longer than %u bytes", IMAGE_SIZE_MAX);
    KLP_CHECK(klp_json_parse(text.data, text.size, IMAGE_DEPTH_MAX, &json, err));
    if (!klp_json_is_object(json))
        return klp_refuse(err, KELPIE_E_INVALID, "is no object");
    KLP_CHECK(format_get(json, err));
    KLP_CHECK(klp_wire_get_name(json, "name", KLP_JSON_REQUIRED, out->name, err));
    KLP_CHECK(klp_wire_get_text(json, "version", KLP_JSON_REQUIRED, out->version,
                                sizeof(out->version), err));
    KLP_CHECK(klp_version_parse(out->version, version, err));
    KLP_CHECK(klp_wire_get_arch(json, "arch", &out->arch, err));
    if (out->arch == KLP_ARCH_NONE)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'arch' is missing");
    KLP_CHECK(ref_get(json, "kernel", KLP_JSON_REQUIRED, &out->kernel, err));
    KLP_CHECK(ref_get(json, "initramfs", KLP_JSON_OPTIONAL, &out->initramfs, err));
    KLP_CHECK(cmdline_get(json, out, err));
    return klp_wire_get_digest(json, "guest", KLP_JSON_OPTIONAL, &out->guest, err);
}

bool klp_image_decode(struct klp_bytes text, struct klp_image *out, struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    *out = (struct klp_image){0};
    if (image_get(text, out, &why))
        return true;
    *out = (struct klp_image){0};
    return klp_wire_refuse(err, KELPIE_E_CORRUPT, "image", why);
}
