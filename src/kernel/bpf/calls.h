/* What the kernel offers: its UAPI and its helper functions. */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/pkt_cls.h>

#include "../weir.h"

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* Verified where it is called: what a pointer is there is known, and none of them can be null. */
#define APART static __attribute__((noinline))
#define AF_INET 2
#define AF_INET6 10
#define bpf_htons(x) __builtin_bswap16(x)
#define bpf_htonl(x) __builtin_bswap32(x)

/* By number, as the kernel documents them: no library is needed. */
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
static __u32 (*prandom)(void) = (void *)7;
static __u32 (*cpu)(void) = (void *)8;
static long (*store_bytes)(struct __sk_buff *skb, __u32 at, const void *from, __u32 length, __u64 flags) = (void *)9;
static long (*redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) = (void *)13;
static long (*l4_csum_replace)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)11;
static long (*load_bytes)(const struct __sk_buff *skb, __u32 at, void *to, __u32 length) = (void *)26;
static long (*change_tail)(struct __sk_buff *skb, __u32 length, __u64 flags) = (void *)38;
static __s64 (*csum_update)(struct __sk_buff *skb, __u32 sum) = (void *)40;
static __s64 (*csum_diff)(const void *from, __u32 from_size, const void *to, __u32 to_size, __u32 seed) = (void *)28;
static long (*fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int length, __u32 flags) = (void *)69;
static void *(*ringbuf_reserve)(void *ring, __u64 size, __u64 flags) = (void *)131;
static void (*ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int length, __u64 flags) = (void *)152;
static __u64 (*ktime_ns)(void) = (void *)5;
static long (*adjust_room)(struct __sk_buff *skb, __s32 difference, __u32 mode, __u64 flags) = (void *)50;
static long (*check_mtu)(void *ctx, __u32 ifindex, __u32 *mtu, __s32 diff, __u64 flags) = (void *)163;
