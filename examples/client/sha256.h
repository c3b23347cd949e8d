/* SHA-256 (FIPS 180-4) and HMAC-SHA256 (RFC 2104). A microcontroller that has hardware
 * for them replaces this. */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
    uint32_t state[8];
    uint64_t length; /* bytes so far */
    uint8_t block[64];
};

void sha256_begin(struct sha256 *hash);
void sha256_add(struct sha256 *hash, const void *bytes, size_t count);
void sha256_end(struct sha256 *hash, uint8_t digest[32]);

/* The key has 64 bytes at most. */
struct hmac { struct sha256 inner, outer; };

void hmac_begin(struct hmac *hmac, const uint8_t *key, size_t key_length);
void hmac_add(struct hmac *hmac, const void *bytes, size_t count);
void hmac_end(struct hmac *hmac, uint8_t digest[32]);

#endif
