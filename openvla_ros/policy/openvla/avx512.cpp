// Products and attention in bfloat16 for x86 CPUs with AVX-512 BF16. avx512.py is the door: it checks shapes, types and strides.
//
// torch multiplies one row at a half of the speed at which the memory gives the weights, and attends with one query at a seventh of it. Here
// weights are read once, from beginning to end, so that a pass of a few rows waits for the memory only, and one of many rows for the multipliers.
//
// Weights lie in blocks of 64 outputs: [outputs / 64][inputs / 2][64][2], as oneDNN packs them, too. One instruction multiplies two
// inputs of 16 outputs. Keys and values that are read more than once are copied into the same layout, so that one
// function does every product. Sums are float32.
// Threads are those of torch's own pool: GOMP_parallel is found in the library that torch has loaded.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define TARGET target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#define AVX512 __attribute__((TARGET))
#define INLINE __attribute__((always_inline, TARGET)) inline

namespace {

using Half = uint16_t;  // the bits of a bfloat16

constexpr long LANES = 16, BLOCK = 64, REGISTERS = BLOCK / LANES;
constexpr long TILE = 7;                 // rows at a time: sums of 7 x 64 in 28 registers, and 4 for weights and inputs, are all that there are
constexpr long NEAR = 1024, FAR = 4096;  // bytes: weights are asked for so long before they are multiplied; FAR where a single block is read

long smaller(long a, long b) { return a < b ? a : b; }
long larger(long a, long b) { return a < b ? b : a; }
long divide_up(long a, long b) { return (a + b - 1) / b; }

// Mask of the first so many of 32 lanes, or of 16.
INLINE uint32_t first(long count) { return count >= 32 ? 0xFFFFFFFFu : count <= 0 ? 0u : (1u << count) - 1; }

INLINE __m512 widen(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }

INLINE __m256i narrow(__m512 numbers) { return (__m256i)_mm512_cvtneps_pbh(numbers); }

// ---- Products

// Blocks [pairs][64][2], one or several `apart` from each other, of which the first 16 * Registers columns are read. Several at a time are several
// streams for the memory, which gives more than one; there are registers for that where rows are few.
template <int Registers>
struct Packed {
    const Half* block;
    long apart;
    template <int Count>
    INLINE void load(long pair, int from, __m512bh (&weights)[Count]) const {
        for (int i = 0; i < Count; i++) {
            const Half* column = block + (from + i) / REGISTERS * apart + (from + i) % REGISTERS * LANES * 2;
            const char* line = reinterpret_cast<const char*>(column + pair * BLOCK * 2);
            _mm_prefetch(line + (Registers > REGISTERS ? NEAR : FAR), Registers > REGISTERS ? _MM_HINT_T1 : _MM_HINT_T0);
            weights[i] = (__m512bh)_mm512_loadu_si512(line);
        }
    }
};

// Two rows of 32 numbers, feature by feature: the first 16 features, or the others.
INLINE __m512i interleave(__m512i even, __m512i odd, bool others) {
    alignas(64) static constexpr uint16_t ORDER[2][32] = {  // numbers from 32 on are of the second row
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    return _mm512_permutex2var_epi16(even, _mm512_load_si512(ORDER[others]), odd);
}

// The same of rows as they lie in a cache: [count][width], from some feature on. Behind the last row, and behind the last feature, are zeros.
template <int Registers>
struct Rowwise {
    const Half* rows;
    long stride, count, width;
    template <int Count>
    INLINE void load(long pair, int from, __m512bh (&weights)[Count]) const {
        const Half *line = rows + 2 * pair * stride + LANES * from, *next = line + stride;
        for (int i = 0; i < Count; i += 2) {
            const __mmask32 inside = first(width - LANES * (from + i));
            const __m512i even = _mm512_maskz_loadu_epi16(inside, line + LANES * i);
            const __m512i odd = _mm512_maskz_loadu_epi16(2 * pair + 1 < count ? inside : 0, next + LANES * i);
            weights[i] = (__m512bh)interleave(even, odd, false);
            if (i + 1 < Count) weights[i + 1] = (__m512bh)interleave(even, odd, true);
        }
    }
};

// Two inputs in all lanes. Read whenever it is asked for: the compiler would keep them, and put sums into memory for that.
INLINE __m512bh spread(const Half* two) {
    typedef int Both __attribute__((may_alias));
    __m512i lanes;
    asm volatile("vpbroadcastd %1, %0" : "=v"(lanes) : "m"(*reinterpret_cast<const Both*>(two)));
    return (__m512bh)lanes;
}

// Rows x [pairs][2] by weights, as Packed or Rowwise.
template <int Rows, int Registers, typename Weights>
INLINE void multiply_block(const Half* x, long stride, long pairs, const Weights& source, __m512 (&sums)[Rows][Registers]) {
    constexpr int STEP = Rows * Registers > 24 ? 2 : Registers;  // weights at a time: beside 28 sums there is room for 2 and the inputs
    static_assert(Registers % STEP == 0);
    __m512 own[Rows * Registers];  // in registers, and not in memory as what others see
#pragma GCC unroll 32
    for (int i = 0; i < Rows * Registers; i++) own[i] = _mm512_setzero_ps();
    for (long pair = 0; pair < pairs; pair++)
#pragma GCC unroll 2
        for (int from = 0; from < Registers; from += STEP) {
            __m512bh weights[STEP];
            source.load(pair, from, weights);
#pragma GCC unroll 8
            for (int row = 0; row < Rows; row++) {
                const __m512bh inputs = spread(x + row * stride + 2 * pair);
#pragma GCC unroll 16
                for (int i = 0; i < STEP; i++) {
                    __m512& sum = own[row * Registers + from + i];
                    sum = _mm512_dpbf16_ps(sum, inputs, weights[i]);
                }
            }
        }
#pragma GCC unroll 32
    for (int i = 0; i < Rows * Registers; i++) sums[i / Registers][i % Registers] = own[i];
}

// One tile of a linear layer: rows by neighbouring blocks. bias: of these outputs, or null. residual: what the rounded outputs are added to, laid out
// as the result and maybe the same memory; or null.
template <int Rows, int Registers>
AVX512 void multiply_tile(const Half* x, long stride, long pairs, const Half* blocks, const Half* bias, const Half* residual, Half* result,
                          long result_stride) {
    __m512 sums[Rows][Registers];
    multiply_block(x, stride, pairs, Packed<Registers>{blocks, pairs * 2 * BLOCK}, sums);
    for (int i = 0; i < Registers; i++) {
        const __m512 added = bias ? widen(_mm256_loadu_si256((const __m256i*)(bias + LANES * i))) : _mm512_setzero_ps();
        for (int row = 0; row < Rows; row++) {
            const long place = row * result_stride + LANES * i;
            __m256i output = narrow(_mm512_add_ps(sums[row][i], added));
            if (residual) output = narrow(_mm512_add_ps(widen(output), widen(_mm256_loadu_si256((const __m256i*)(residual + place)))));
            _mm256_storeu_si256((__m256i*)(result + place), output);
        }
    }
}

// Queries by a block of keys -> scores.
template <int Rows>
AVX512 void score_tile(const Half* queries, long stride, long pairs, const Half* block, float* scores, long score_stride) {
    __m512 sums[Rows][REGISTERS];
    multiply_block(queries, stride, pairs, Packed<REGISTERS>{block, 0}, sums);
    for (int row = 0; row < Rows; row++)
        for (int i = 0; i < REGISTERS; i++) _mm512_storeu_ps(scores + row * score_stride + LANES * i, sums[row][i]);
}

// Weights of keys by values, times a factor per row -> the first `width` features of a block.
template <int Rows, int Registers, typename Values>
INLINE void mix(const Half* weights, long stride, long pairs, const Values& values, const float* factors, Half* result, long result_stride,
                long width) {
    __m512 sums[Rows][Registers];
    multiply_block(weights, stride, pairs, values, sums);
    for (int row = 0; row < Rows; row++)
        for (int i = 0; i < Registers; i++)
            _mm256_mask_storeu_epi16(result + row * result_stride + LANES * i, first(smaller(width - LANES * i, LANES)),
                                     narrow(_mm512_mul_ps(sums[row][i], _mm512_set1_ps(factors[row]))));
}

template <int Rows, int Registers>
AVX512 void mix_packed(const Half* weights, long stride, long pairs, const Half* block, const float* factors, Half* result, long result_stride,
                       long width) {
    mix<Rows, Registers>(weights, stride, pairs, Packed<Registers>{block, 0}, factors, result, result_stride, width);
}

template <int Rows>
AVX512 void mix_rowwise(const Half* weights, long stride, long count, const Half* rows, long row_stride, const float* factors, Half* result,
                        long result_stride, long width) {
    mix<Rows, REGISTERS>(weights, stride, (count + 1) / 2, Rowwise<REGISTERS>{rows, row_stride, count, width}, factors, result, result_stride, width);
}

#define BY_ROWS(function) {nullptr, function<1>, function<2>, function<3>, function<4>, function<5>, function<6>, function<7>}
#define BY_REGISTERS(rows) {nullptr, mix_packed<rows, 1>, mix_packed<rows, 2>, mix_packed<rows, 3>, mix_packed<rows, 4>}
constexpr decltype(&multiply_tile<1, 4>) MULTIPLY[TILE + 1][5] = {  // by rows and blocks
    {},
    {nullptr, multiply_tile<1, 4>, multiply_tile<1, 8>, nullptr, multiply_tile<1, 16>},
    {nullptr, multiply_tile<2, 4>, multiply_tile<2, 8>},
    {nullptr, multiply_tile<3, 4>, multiply_tile<3, 8>},
    {nullptr, multiply_tile<4, 4>}, {nullptr, multiply_tile<5, 4>}, {nullptr, multiply_tile<6, 4>}, {nullptr, multiply_tile<7, 4>}};
constexpr decltype(&score_tile<1>) SCORE[TILE + 1] = BY_ROWS(score_tile);
constexpr decltype(&mix_rowwise<1>) MIX_ROWWISE[TILE + 1] = BY_ROWS(mix_rowwise);
constexpr decltype(&mix_packed<1, 1>) MIX_PACKED[TILE + 1][REGISTERS + 1] = {
    {}, BY_REGISTERS(1), BY_REGISTERS(2), BY_REGISTERS(3), BY_REGISTERS(4), BY_REGISTERS(5), BY_REGISTERS(6), BY_REGISTERS(7)};

// work(0) to work(count - 1), on so many threads; who is done early takes the next.
template <typename Work>
void share(long threads, long count, const Work& work) {
    std::atomic<long> next{0};
#pragma omp parallel num_threads(threads)
    for (long item; (item = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(item);
}

// In how many parts each of `items` is cut, so that all threads have some; not in more than `most`.
long parts_of(long items, long threads, long most) { return larger(1, smaller(divide_up(4 * threads, items), most)); }

// Memory of this thread for one purpose, kept for the next time; its content is anything. Null where there is none.
enum Purpose { OF_A_HEAD, OF_A_LAYER };
template <Purpose>
char* scratch(size_t bytes) {
    struct Room {
        char* data = nullptr;
        size_t size = 0;
        ~Room() { std::free(data); }
    };
    static thread_local Room room;
    if (!room.data || room.size < bytes) {
        std::free(room.data);
        room.data = static_cast<char*>(std::aligned_alloc(64, larger(64, bytes)));
        room.size = room.data ? bytes : 0;
    }
    return room.data;
}

// x [rows][inputs] -> result [rows][outputs]. bias, residual: as of a tile.
void multiply(long threads, long rows, long inputs, long outputs, const Half* x, const Half* weights, const Half* bias, const Half* residual,
              Half* result) {
    if (!rows) return;
    const long blocks = outputs / BLOCK, tiles = divide_up(rows, TILE);
    const auto tile = [=](long row, long block, long together) {
        MULTIPLY[smaller(rows - row, TILE)][together](x + row * inputs, inputs, inputs / 2, weights + block * BLOCK * inputs,
                                                      bias ? bias + block * BLOCK : nullptr,
                                                      residual ? residual + row * outputs + block * BLOCK : nullptr,
                                                      result + row * outputs + block * BLOCK, outputs);
    };
    if (tiles > 1) {  // a block stays in the cache for all tiles; those are cut, too, where there are fewer blocks than work for all threads
        const long parts = parts_of(blocks, threads, tiles);
        share(threads, blocks * parts, [=](long item) {
            for (long i = tiles * (item % parts) / parts; i < tiles * (item % parts + 1) / parts; i++) tile(i * TILE, item / parts, 1);
        });
    } else {
        long most = rows == 1 ? 4 : rows <= 3 ? 2 : 1;  // blocks together
        while (most > 1 && blocks < 2 * threads * most) most /= 2;
        share(threads, divide_up(blocks, most), [=](long group) {
            const long end = smaller(blocks, (group + 1) * most);
            for (long block = group * most, together; block < end; block += together) {
                for (together = most; together > end - block; together /= 2) {}
                tile(0, block, together);
            }
        });
    }
}

// ---- Attention

// 16 x 16 numbers of 32 bits: lines become columns.
INLINE void transpose(__m512i (&m)[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        m[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        m[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        m[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        m[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; i++) {
        m[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        m[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        m[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
        m[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
    }
}

// Keys [count][width] -> [padded / 64][width / 2][64][2], zeros behind the last.
AVX512 void pack_keys(const Half* keys, long stride, long count, long padded, long width, Half* packed) {
    for (long key = 0; key < padded; key += LANES) {
        Half* column = packed + key / BLOCK * BLOCK * width + key % BLOCK * 2;
        for (long feature = 0; feature < width; feature += 2 * LANES) {
            __m512i lines[16];
            for (int i = 0; i < 16; i++)
                lines[i] = key + i < count ? _mm512_maskz_loadu_epi16(first(width - feature), keys + (key + i) * stride + feature)
                                           : _mm512_setzero_si512();
            transpose(lines);
            for (int i = 0; i < 16 && feature + 2 * i < width; i++)
                _mm512_storeu_si512(column + (feature / 2 + i) * 2 * BLOCK, lines[i]);
        }
    }
}

// Values [count][width] -> [width / 64, rounded up][padded / 2][64][2], zeros behind the last.
AVX512 void pack_values(const Half* values, long stride, long count, long padded, long width, Half* packed) {
    for (long feature = 0; feature < width; feature += 2 * LANES) {
        Half* column = packed + feature / BLOCK * BLOCK * padded + feature % BLOCK * 2;
        const __mmask32 inside = first(width - feature);
        for (long key = 0; key < padded; key += 2) {
            const Half* line = values + key * stride + feature;
            const __m512i even = _mm512_maskz_loadu_epi16(key < count ? inside : 0, line);
            const __m512i odd = _mm512_maskz_loadu_epi16(key + 1 < count ? inside : 0, line + stride);
            _mm512_storeu_si512(column + key * BLOCK, interleave(even, odd, false));
            _mm512_storeu_si512(column + key * BLOCK + 2 * LANES, interleave(even, odd, true));
        }
    }
}

// Queries by keys as they lie in a cache -> scores, 16 keys at a time; those behind the last are 0. values: brought near.
AVX512 void score_rowwise(const Half* queries, long stride, long rows, const Half* keys, long key_stride, const Half* values, long value_stride,
                          long count, long width, float* scores, long score_stride) {
    for (long key = 0; key < count; key += LANES)
        for (long row = 0; row < rows; row++) {
            __m512 sums[16];
            for (int i = 0; i < 16; i++) sums[i] = _mm512_setzero_ps();
            for (long feature = 0; feature < width; feature += 2 * LANES) {
                const __mmask32 inside = first(width - feature);
                const __m512bh query = (__m512bh)_mm512_maskz_loadu_epi16(inside, queries + row * stride + feature);
                for (int i = 0; i < 16; i++) {
                    const __mmask32 there = key + i < count ? inside : 0;
                    const Half* place = keys + (key + i) * key_stride + feature;
                    if (row == 0) {  // the next keys, and the values that will be asked for
                        _mm_prefetch(reinterpret_cast<const char*>(place + LANES * key_stride), _MM_HINT_T0);
                        _mm_prefetch(reinterpret_cast<const char*>(values + (key + i) * value_stride + feature), _MM_HINT_T1);
                    }
                    const __m512i line = _mm512_maskz_loadu_epi16(there, place);
                    sums[i] = _mm512_dpbf16_ps(sums[i], query, (__m512bh)line);
                }
            }
            __m512i lines[16];
            for (int i = 0; i < 16; i++) lines[i] = _mm512_castps_si512(sums[i]);
            transpose(lines);
            for (int half = 8; half > 0; half /= 2)
                for (int i = 0; i < half; i++)
                    lines[i] = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(lines[i]), _mm512_castsi512_ps(lines[i + half])));
            _mm512_storeu_ps(scores + row * score_stride + key, _mm512_castsi512_ps(lines[0]));
        }
}

// 2 to the power of numbers, to a few of their last digits in float32. NaN stays NaN.
INLINE __m512 power_of_two(__m512 exponents) {
    exponents = _mm512_max_ps(_mm512_set1_ps(-150.0f), exponents);  // in this order: of NaN and a number the second is taken
    exponents = _mm512_min_ps(_mm512_set1_ps(150.0f), exponents);   // 0 and infinity beyond
    const __m512 whole = _mm512_roundscale_ps(exponents, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(exponents, whole);
    constexpr float terms[] = {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.0f};  // ln(2)^n / n!
    __m512 sum = _mm512_set1_ps(1.54035304e-4f);
    for (float term : terms) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(term));
    return _mm512_scalef_ps(sum, whole);
}

// Scores of the keys that are seen -> their share before division, zeros from there to `end`; returns what to multiply by instead of dividing.
// scale: of the scores, times log2(e).
AVX512 float weigh(const float* scores, long seen, long end, float scale, Half* weights) {
    __m512 most = _mm512_set1_ps(-__builtin_inff()), sum = _mm512_setzero_ps();
    for (long key = 0; key < seen; key += LANES)
        most = _mm512_mask_max_ps(most, first(smaller(seen - key, LANES)), most, _mm512_loadu_ps(scores + key));
    const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(_mm512_reduce_max_ps(most) * scale);
    for (long key = 0; key < end; key += LANES) {
        const __m512 powers = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key), factor, shift));
        const __m512 shares = _mm512_maskz_mov_ps(first(smaller(seen - key, LANES)), powers);
        sum = _mm512_add_ps(sum, shares);
        _mm256_storeu_si256((__m256i*)(weights + key), narrow(shares));
    }
    return 1.0f / _mm512_reduce_add_ps(sum);
}

// [batch][heads][rows][width], at any distance from each other, the features of a row side by side.
struct Heads {
    const Half* data;
    Py_ssize_t batch_stride, head_stride, row_stride;
    const Half* at(long batch, long head) const { return data + batch * batch_stride + head * head_stride; }
};

// The answers to queries `begin` to `begin` + `count` of one head. packed_keys, packed_values: null where keys and values are read as they lie.
struct Attention {
    long queries, keys, width, padded;
    bool causal;
    float scale;

    void answer(long begin, long count, const Half* query, long query_stride, const Half* key, long key_stride, const Half* value, long value_stride,
                const Half* packed_keys, const Half* packed_values, float* scores, Half* weights, Half* result, long result_stride) const {
        const long seen = causal ? keys - queries + begin + count : keys;  // by the last of these queries
        const long end = divide_up(seen, LANES) * LANES;
        if (packed_keys)
            for (long block = 0; block * BLOCK < seen; block++)
                SCORE[count](query + begin * query_stride, query_stride, width / 2, packed_keys + block * BLOCK * width,
                             scores + block * BLOCK, padded);
        else
            score_rowwise(query + begin * query_stride, query_stride, count, key, key_stride, value, value_stride, seen, width, scores, padded);
        float factors[TILE];
        for (long i = 0; i < count; i++)
            factors[i] = weigh(scores + i * padded, causal ? seen - count + i + 1 : keys, end, scale, weights + i * padded);
        for (long feature = 0; feature < width; feature += BLOCK) {
            const long left = smaller(width - feature, BLOCK);
            if (packed_values)
                MIX_PACKED[count][divide_up(left, LANES)](weights, padded, end / 2, packed_values + feature * padded, factors, result + feature,
                                                          result_stride, left);
            else
                MIX_ROWWISE[count](weights, padded, seen, value + feature, value_stride, factors, result + feature, result_stride, left);
        }
    }
};

// Causal: the last query sees all keys, the one before it all but the last, and so on. group: so many heads of queries share one of keys.
// starts: of each batch row, how many keys are in front of those of the queries, at most `keys` less these; null: all rows have all keys.
// result: [batch][queries][heads][width]. False: there was no memory for it.
bool attend(long threads, long batch, long heads, long group, long queries, long keys, const long* starts, long width, const Heads& query,
            const Heads& key, const Heads& value, bool causal, float scale, Half* result) {
    const long padded = divide_up(keys, BLOCK) * BLOCK, tiles = divide_up(queries, TILE);
    const long parts = parts_of(batch * heads, threads, tiles / 4);  // each part packs the keys again
    const bool packed = tiles > 1;                                   // worth it where they are read more than once
    const long packed_keys = packed ? padded * width : 0, packed_values = packed ? padded * divide_up(width, BLOCK) * BLOCK : 0;
    const size_t bytes = (packed_keys + packed_values) * sizeof(Half) + TILE * padded * (sizeof(float) + sizeof(Half));  // a multiple of 64
    std::atomic<bool> enough{true};
    share(threads, batch * heads * parts, [&](long item) {
        const long row = item / parts / heads, head = item / parts % heads, part = item % parts;
        Half* memory = reinterpret_cast<Half*>(scratch<OF_A_HEAD>(bytes));
        if (!memory) {
            enough = false;
            return;
        }
        const long own = starts ? starts[row] + queries : keys;
        const Attention attention{queries, own, width, padded, causal, scale};
        const Half *key_rows = key.at(row, head / group), *value_rows = value.at(row, head / group);
        Half *own_keys = packed ? memory : nullptr, *own_values = packed ? memory + packed_keys : nullptr;
        float* scores = reinterpret_cast<float*>(memory + packed_keys + packed_values);
        if (packed) {
            pack_keys(key_rows, key.row_stride, own, padded, width, own_keys);
            pack_values(value_rows, value.row_stride, own, padded, width, own_values);
        }
        for (long begin = tiles * part / parts * TILE; begin < smaller(queries, tiles * (part + 1) / parts * TILE); begin += TILE)
            attention.answer(begin, smaller(queries - begin, TILE), query.at(row, head), query.row_stride, key_rows, key.row_stride,
                             value_rows, value.row_stride, own_keys, own_values, scores, reinterpret_cast<Half*>(scores + TILE * padded),
                             result + ((row * queries + begin) * heads + head) * width, heads * width);
    });
    return enough;
}

// ---- Between the products

// Root-mean-square norm of rows [rows][width], rounded, times the weight, rounded again: as language.RmsNorm says it.
AVX512 void normalize_row(const Half* x, long width, const Half* weight, float eps, Half* result) {
    __m512 squares = _mm512_setzero_ps();
    for (long i = 0; i < width; i += LANES) {
        const __m512 numbers = widen(_mm256_maskz_loadu_epi16(first(smaller(width - i, LANES)), x + i));
        squares = _mm512_fmadd_ps(numbers, numbers, squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / width + eps));
    for (long i = 0; i < width; i += LANES) {
        const __mmask16 inside = first(smaller(width - i, LANES));
        const __m512 numbers = widen(narrow(_mm512_mul_ps(widen(_mm256_maskz_loadu_epi16(inside, x + i)), factor)));
        _mm256_mask_storeu_epi16(result + i, inside, narrow(_mm512_mul_ps(numbers, widen(_mm256_maskz_loadu_epi16(inside, weight + i)))));
    }
}

void normalize(long threads, long rows, long width, const Half* x, const Half* weight, float eps, Half* result) {
    share(rows < 4 * threads ? 1 : threads, rows, [=](long row) { normalize_row(x + row * width, width, weight, eps, result + row * width); });
}

// [rows][gate: width, up: width] -> SiLU of the gate, rounded, times up: [rows][width]
AVX512 void gate_row(const Half* x, long width, Half* result) {
    const __m512 minus_log2e = _mm512_set1_ps(-1.44269504f), one = _mm512_set1_ps(1.0f);
    for (long i = 0; i < width; i += LANES) {
        const __mmask16 inside = first(smaller(width - i, LANES));
        const __m512 gate = widen(_mm256_maskz_loadu_epi16(inside, x + i)), up = widen(_mm256_maskz_loadu_epi16(inside, x + width + i));
        const __m512 silu = widen(narrow(_mm512_div_ps(gate, _mm512_add_ps(one, power_of_two(_mm512_mul_ps(gate, minus_log2e))))));
        _mm256_mask_storeu_epi16(result + i, inside, narrow(_mm512_mul_ps(silu, up)));
    }
}

void gate(long threads, long rows, long width, const Half* x, Half* result) {
    share(rows < 4 * threads ? 1 : threads, rows, [=](long row) { gate_row(x + row * 2 * width, width, result + row * width); });
}

// Rotary position embedding of one head, as language.rotate says it, roundings included. width: a multiple of 32. Without tables: a copy.
AVX512 void turn_row(const Half* x, long width, const Half* cosine, const Half* sine, Half* result) {
    for (long i = 0; i < width; i += LANES) {
        __m256i numbers = _mm256_loadu_si256((const __m256i*)(x + i));
        if (cosine) {
            const __m512 others = widen(_mm256_loadu_si256((const __m256i*)(x + (i < width / 2 ? i + width / 2 : i - width / 2))));
            const __m512 straight = widen(narrow(_mm512_mul_ps(widen(numbers), widen(_mm256_loadu_si256((const __m256i*)(cosine + i))))));
            const __m512 across = widen(narrow(_mm512_mul_ps(others, widen(_mm256_loadu_si256((const __m256i*)(sine + i))))));
            numbers = narrow(_mm512_add_ps(straight, across));
        }
        _mm256_storeu_si256((__m256i*)(result + i), numbers);
    }
}

// Where the tokens of a pass stand: those of batch row i at starts[i] and behind, with the rotary tables [tokens][width] of these places at i times
// `stride`, 0 where all rows stand alike.
struct Places {
    const long* starts;
    const Half *cosine, *sine;
    Py_ssize_t stride;
};

// x [batch][tokens][own + 2 common][width]: turned queries -> [batch][tokens][own][width], turned keys and values -> their places in a cache.
void store(long threads, long batch, long tokens, long own, long common, long width, const Half* x, const Places& places, Half* queries, Half* keys,
           Half* values, long batch_stride, long head_stride) {
    const long count = batch * tokens;
    share(count < 4 * threads ? 1 : threads, count, [&](long item) {
        const long row = item / tokens, token = item % tokens, turn = row * places.stride + token * width;
        const Half *line = x + item * (own + 2 * common) * width, *c = places.cosine + turn, *s = places.sine + turn;
        for (long head = 0; head < own; head++) turn_row(line + head * width, width, c, s, queries + (item * own + head) * width);
        for (long head = 0; head < common; head++) {
            const long place = row * batch_stride + head * head_stride + (places.starts[row] + token) * width;
            turn_row(line + (own + head) * width, width, c, s, keys + place);
            turn_row(line + (own + common + head) * width, width, nullptr, nullptr, values + place);
        }
    });
}

// ---- The decoder

struct Decoder {
    long hidden, own, common, width, inner;  // features; heads of queries and of keys, and their features; features within the feed-forward part
    float eps, scale;                        // of the norms; of the scores, times log2(e)
};

struct Layer {
    const Half *input_norm, *qkv, *o, *post_norm, *gate_up, *down;
};

// The memory of a cache.
struct Cache {
    Half *keys, *values;
    Py_ssize_t layer_stride, batch_stride, head_stride;
};

// x [batch][tokens][hidden] -> result, through so many layers, as language.DecoderLayer says it, and through a norm unless that is null. Each
// token sees what is before it, and itself. False: there was no memory for it.
bool decode(long threads, long batch, long tokens, const Decoder& decoder, const Layer* layers, long count, const Half* norm, const Half* x,
            const Places& places, const Cache& cache, Half* result) {
    const auto [hidden, own, common, width, inner, eps, scale] = decoder;
    const long rows = batch * tokens, heads = own + 2 * common;
    long end = 0;
    for (long row = 0; row < batch; row++) end = larger(end, places.starts[row] + tokens);
    const size_t bytes = rows * (hidden + heads * width + 2 * own * width + 3 * inner) * sizeof(Half);
    Half* memory = reinterpret_cast<Half*>(scratch<OF_A_LAYER>(divide_up(bytes, 64) * 64));
    if (!memory) return false;
    Half *normed = memory, *projected = normed + rows * hidden, *queries = projected + rows * heads * width, *mixed = queries + rows * own * width,
         *both = mixed + rows * own * width, *gated = both + rows * 2 * inner;
    for (const Layer* layer = layers; layer < layers + count; layer++, x = result) {
        Half *keys = cache.keys + (layer - layers) * cache.layer_stride, *values = cache.values + (layer - layers) * cache.layer_stride;
        normalize(threads, rows, hidden, x, layer->input_norm, eps, normed);
        multiply(threads, rows, hidden, heads * width, normed, layer->qkv, nullptr, nullptr, projected);
        store(threads, batch, tokens, own, common, width, projected, places, queries, keys, values, cache.batch_stride, cache.head_stride);
        if (!attend(threads, batch, own, own / common, tokens, end, places.starts, width, {queries, tokens * own * width, width, own * width},
                    {keys, cache.batch_stride, cache.head_stride, width}, {values, cache.batch_stride, cache.head_stride, width}, true, scale,
                    mixed))
            return false;
        multiply(threads, rows, own * width, hidden, mixed, layer->o, nullptr, x, result);
        normalize(threads, rows, hidden, result, layer->post_norm, eps, normed);
        multiply(threads, rows, hidden, 2 * inner, normed, layer->gate_up, nullptr, nullptr, both);
        gate(threads, rows, inner, both, gated);
        multiply(threads, rows, inner, hidden, gated, layer->down, nullptr, result, result);
    }
    if (norm) normalize(threads, rows, hidden, x, norm, eps, result);
    return true;
}

// ---- Python

bool has_avx512_bf16() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

bool has_amx() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return false;             // the system says what registers it keeps
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 22)) return false;    // AMX-BF16
    asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (a >> 17 & 3) == 3;  // among them the tiles
}

PyObject* call_multiply(PyObject*, PyObject* arguments) {
    Py_ssize_t threads, rows, inputs, outputs, x, weights, bias, result;
    if (!PyArg_ParseTuple(arguments, "nnnnnnnn", &threads, &rows, &inputs, &outputs, &x, &weights, &bias, &result)) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    multiply(threads, rows, inputs, outputs, (const Half*)x, (const Half*)weights, (const Half*)bias, nullptr, (Half*)result);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject* call_decode(PyObject*, PyObject* arguments) {
    Py_ssize_t threads, batch, tokens, count, norm, x, cosine, sine, keys, values, result;
    Decoder decoder;
    Places places;
    Cache cache;
    PyObject *addresses, *starts;
    if (!PyArg_ParseTuple(arguments, "nnn(lllllff)O!nnn(O!nnn)(nnnnn)n", &threads, &batch, &tokens, &decoder.hidden, &decoder.own, &decoder.common,
                          &decoder.width, &decoder.inner, &decoder.eps, &decoder.scale, &PyTuple_Type, &addresses, &count, &norm, &x, &PyTuple_Type,
                          &starts, &cosine, &sine, &places.stride, &keys, &values, &cache.layer_stride, &cache.batch_stride, &cache.head_stride,
                          &result))
        return nullptr;
    constexpr Py_ssize_t PARTS = sizeof(Layer) / sizeof(Half*);
    if (PyTuple_Size(addresses) < count * PARTS) return PyErr_Format(PyExc_ValueError, "%zd layers need %zd addresses", count, count * PARTS);
    if (PyTuple_Size(starts) != batch) return PyErr_Format(PyExc_ValueError, "%zd rows need as many starts", batch);
    const size_t layers_bytes = count * sizeof(Layer);
    char* memory = static_cast<char*>(std::malloc(layers_bytes + batch * sizeof(long) + 1));
    if (!memory) return PyErr_NoMemory();
    Layer* layers = reinterpret_cast<Layer*>(memory);
    long* own_starts = reinterpret_cast<long*>(memory + layers_bytes);
    for (Py_ssize_t i = 0; i < count * PARTS; i++)
        reinterpret_cast<const Half**>(layers)[i] = (const Half*)PyLong_AsSsize_t(PyTuple_GET_ITEM(addresses, i));
    for (Py_ssize_t i = 0; i < batch; i++) own_starts[i] = PyLong_AsLong(PyTuple_GET_ITEM(starts, i));
    if (PyErr_Occurred()) {  // one was no number
        std::free(memory);
        return nullptr;
    }
    places.starts = own_starts, places.cosine = (const Half*)cosine, places.sine = (const Half*)sine;
    cache.keys = (Half*)keys, cache.values = (Half*)values;
    bool enough;
    Py_BEGIN_ALLOW_THREADS
    enough = decode(threads, batch, tokens, decoder, layers, count, (const Half*)norm, (const Half*)x, places, cache, (Half*)result);
    Py_END_ALLOW_THREADS
    std::free(memory);
    if (!enough) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyObject* call_attend(PyObject*, PyObject* arguments) {
    Py_ssize_t threads, batch, heads, queries, keys, width, pointers[4];
    Heads query, key, value;
    int causal;
    float scale;
    if (!PyArg_ParseTuple(arguments, "nnnnnn(nnnn)(nnnn)(nnnn)pfn", &threads, &batch, &heads, &queries, &keys, &width,
                          &pointers[0], &query.batch_stride, &query.head_stride, &query.row_stride,
                          &pointers[1], &key.batch_stride, &key.head_stride, &key.row_stride,
                          &pointers[2], &value.batch_stride, &value.head_stride, &value.row_stride, &causal, &scale, &pointers[3]))
        return nullptr;
    query.data = (const Half*)pointers[0], key.data = (const Half*)pointers[1], value.data = (const Half*)pointers[2];
    bool enough;
    Py_BEGIN_ALLOW_THREADS
    enough = attend(threads, batch, heads, 1, queries, keys, nullptr, width, query, key, value, causal, scale, (Half*)pointers[3]);
    Py_END_ALLOW_THREADS
    if (!enough) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef METHODS[] = {
    {"multiply", call_multiply, METH_VARARGS, "threads, rows, inputs, outputs, addresses of: rows, weights, bias or 0, result"},
    {"attend", call_attend, METH_VARARGS,
     "threads, batch, heads, queries, keys, width, (address, strides of batch, head, row) of queries, keys and values, causal, scale, result"},
    {"decode", call_decode, METH_VARARGS,
     "threads, batch, tokens, (hidden, heads of queries, of keys, width, inner, eps, scale), (addresses of six weights per layer), layers to run, "
     "addresses of: the last norm or 0, tokens; (first place of each row, addresses of cosines and sines, their stride of a row), "
     "(addresses of keys and values, strides of layer, batch and head), address of the result"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

#else

namespace {
bool has_avx512_bf16() { return false; }
bool has_amx() { return false; }
PyMethodDef METHODS[] = {{nullptr, nullptr, 0, nullptr}};
}  // namespace

#endif

// Counted up with every change of what avx512.py calls, or how: what was compiled before is not used then.
constexpr long INTERFACE = 2;

PyMODINIT_FUNC PyInit__avx512() {
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_avx512", "Kernels of avx512.cpp; see avx512.py.", -1, METHODS,
                                     nullptr, nullptr, nullptr, nullptr};
    PyObject* module = PyModule_Create(&definition);
    if (module && (PyModule_AddIntConstant(module, "interface", INTERFACE) || PyModule_AddIntConstant(module, "has_amx", has_amx()) ||
                   PyModule_AddIntConstant(module, "has_avx512_bf16", has_avx512_bf16())))
        Py_CLEAR(module);
    return module;
}
