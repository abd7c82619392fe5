#include "base/crc32.h"

#include <pthread.h>

#include "base/endian.h"

/* table[k][b]: the register after byte b and k more zero bytes, so that eight bytes go in one step. */
static uint32_t table32[8][256], table32c[8][256];
static uint16_t table16[256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint32_t shift8(uint32_t c, uint32_t poly)
{
	for (int k = 0; k < 8; k++)
		c = c & 1 ? c >> 1 ^ poly : c >> 1;
	return c;
}

static void fill(uint32_t table[8][256], uint32_t poly)
{
	for (uint32_t b = 0; b < 256; b++)
		table[0][b] = shift8(b, poly);
	for (int k = 1; k < 8; k++)
		for (int b = 0; b < 256; b++)
			table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 0xff];
}

static void fill_all(void)
{
	fill(table32, 0xedb88320);
	fill(table32c, 0x82f63b78);
	for (uint32_t b = 0; b < 256; b++)
		table16[b] = (uint16_t)shift8(b, 0xa001);
}

static uint32_t run(uint32_t table[8][256], uint32_t crc, const uint8_t *p, size_t n)
{
	for (; n >= 8; p += 8, n -= 8) {
		uint32_t lo = crc ^ get_le32(p), hi = get_le32(p + 4);

		crc = table[7][lo & 0xff] ^ table[6][lo >> 8 & 0xff] ^ table[5][lo >> 16 & 0xff] ^ table[4][lo >> 24] ^
		      table[3][hi & 0xff] ^ table[2][hi >> 8 & 0xff] ^ table[1][hi >> 16 & 0xff] ^ table[0][hi >> 24];
	}
	while (n--)
		crc = table[0][(crc ^ *p++) & 0xff] ^ crc >> 8;
	return crc;
}

uint32_t crc32(uint32_t crc, const void *p, size_t n)
{
	pthread_once(&once, fill_all);
	return run(table32, crc, p, n);
}

uint32_t crc32_castagnoli(uint32_t crc, const void *p, size_t n)
{
	pthread_once(&once, fill_all);
	return run(table32c, crc, p, n);
}

uint16_t crc16(uint16_t crc, const void *p, size_t n)
{
	const uint8_t *b = p;

	pthread_once(&once, fill_all);
	while (n--)
		crc = (uint16_t)(table16[(crc ^ *b++) & 0xff] ^ crc >> 8);
	return crc;
}
