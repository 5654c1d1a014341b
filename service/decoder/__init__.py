"""Clients' pictures are opened in children: small, bounded, killable, without keys or sockets. ①"""
