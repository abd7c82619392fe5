/* The two CRC-32s and the CRC-16 of on-disk formats. All take and return the plain register: pass the start value,
 * invert yourself. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Polynomial 0x04c11db7, reflected (GPT, LVM2). GPT: ~crc32(~0, p, n). */
/* Hidden: zlib's is another, and libraries that we are linked with use that. */
__attribute__((visibility("hidden"))) uint32_t crc32(uint32_t crc, const void *p, size_t n);
/* Castagnoli, 0x1edc6f41, reflected (ext4, XFS). XFS: ~crc32_castagnoli(~0, p, n); ext4 doesn't invert at the end. */
uint32_t crc32_castagnoli(uint32_t crc, const void *p, size_t n);
/* Polynomial 0x8005, reflected (ext4 group descriptors before metadata_csum). */
uint16_t crc16(uint16_t crc, const void *p, size_t n);
