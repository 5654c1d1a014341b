"""The front: speaks HTTP, admits samples, answers queries. It changes no weight. ①②⑧⑨"""
