#include "sha256.h"
#include <string.h>

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotated(uint32_t n, int by) { return n >> by | n << (32 - by); }

static void take_block(struct sha256 *hash)
{
    uint32_t w[16], s[8];
    for (int i = 0; i < 16; i++) {
        const uint8_t *at = hash->block + 4 * i;
        w[i] = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
    }
    memcpy(s, hash->state, sizeof s);
    for (int i = 0; i < 64; i++) {
        if (i >= 16) { /* the schedule, in place: w[i] stands at i % 16 */
            uint32_t a = w[(i + 1) & 15], b = w[(i + 14) & 15];
            w[i & 15] += w[(i + 9) & 15] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3)
                         + (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
        }
        uint32_t one = s[7] + (rotated(s[4], 6) ^ rotated(s[4], 11) ^ rotated(s[4], 25))
                       + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i & 15];
        uint32_t two = (rotated(s[0], 2) ^ rotated(s[0], 13) ^ rotated(s[0], 22))
                       + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        hash->state[i] += s[i];
}

void sha256_begin(struct sha256 *hash)
{
    static const uint32_t begin[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(hash->state, begin, sizeof begin);
    hash->length = 0;
}

void sha256_add(struct sha256 *hash, const void *bytes, size_t count)
{
    for (const uint8_t *at = bytes; count > 0; count--) {
        hash->block[hash->length++ % 64] = *at++;
        if (hash->length % 64 == 0)
            take_block(hash);
    }
}

void sha256_end(struct sha256 *hash, uint8_t digest[32])
{
    uint64_t bits = hash->length * 8;
    uint8_t byte = 0x80;
    do {
        sha256_add(hash, &byte, 1);
        byte = 0;
    } while (hash->length % 64 != 56);
    for (int shift = 56; shift >= 0; shift -= 8) {
        byte = (uint8_t)(bits >> shift);
        sha256_add(hash, &byte, 1);
    }
    for (int i = 0; i < 32; i++)
        digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - i % 4 * 8));
}

void hmac_begin(struct hmac *hmac, const uint8_t *key, size_t key_length)
{
    sha256_begin(&hmac->inner);
    sha256_begin(&hmac->outer);
    for (size_t i = 0; i < 64; i++) {
        uint8_t byte = i < key_length ? key[i] : 0, inner = byte ^ 0x36, outer = byte ^ 0x5c;
        sha256_add(&hmac->inner, &inner, 1);
        sha256_add(&hmac->outer, &outer, 1);
    }
}

void hmac_add(struct hmac *hmac, const void *bytes, size_t count) { sha256_add(&hmac->inner, bytes, count); }

void hmac_end(struct hmac *hmac, uint8_t digest[32])
{
    sha256_end(&hmac->inner, digest);
    sha256_add(&hmac->outer, digest, 32);
    sha256_end(&hmac->outer, digest);
}
